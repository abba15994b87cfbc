"""The section `models`: what each model needs, from its folder, the catalogue or its own keys."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium import catalog
from modelium.catalog import DEFAULT_KV_TOKENS, DEFAULT_SLO, BatchLimits, ModelSpec, core_model
from modelium.config import schema
from modelium.config.planning.hardware import Hardware
from modelium.config.planning.profiles import of_model
from modelium.config.values import build
from modelium.control.costs import Stages
from modelium.core import Model, Slo
from modelium.errors import ConfigError, ModeliumError, ProfileError
from modelium.managers.runtimes import CAN_SLEEP
from modelium.storage.fingerprint import FilesIdentity, fingerprint

if TYPE_CHECKING:
    from modelium.sim.profiles import Entry

DTYPE_BYTES: dict[str | None, float] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "fp8": 1,
    "int8": 1,
    "int4": 0.5,
}


NUMBERS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size")
"""Settings of vLLM that planning counts with, wherever they are said."""
NO_LIMITS = ("dtype", "max_model_len", "block_size", "enable_prefix_caching")


@dataclass(frozen=True)
class Served:
    """A model, and how it is served."""

    model: Model
    spec: ModelSpec | None
    """Its shape, where that is known."""
    vllm: schema.EngineSettings
    infer: schema.Infer | None
    stages: Stages
    profiles: Mapping[str, Entry] = field(default_factory=dict)
    """Its step times that the configuration gives, by kind of GPU."""
    files: FilesIdentity = field(default_factory=FilesIdentity)
    """As they were before they were analysed."""


def served(
    name: str,
    entry: schema.ModelEntry,
    config: schema.Config,
    hardware: Hardware,
    own: Sequence[Entry] = (),
) -> Served:
    """One model of a configuration; `own` are its profiles. Raises ConfigError with the path."""
    files = fingerprint(config.repository / entry.path) if entry.path else FilesIdentity()
    try:
        settings = config.vllm.default_settings.under(entry.vllm).under(_flags(config, entry))
        spec, size = _facts(name, entry, settings, config.repository)
        allowed = _allowed(entry, hardware)
        if spec is None:
            base = _unknown(name, entry, size, own)
        else:
            base = _known(spec, entry, settings, allowed)
        if base.gpus > 1:
            allowed = _without_parts(base.gpus, allowed)
    except ModeliumError as error:
        raise ConfigError(f"models.{name}: {error}") from None
    model = dataclasses.replace(
        base,
        name=name,
        slo=slo(entry.slo) or slo(config.slo) or DEFAULT_SLO,
        pinned=entry.pinned or name in config.orchestration.always_loaded,
        min_replicas=entry.min_replicas,
        spread=entry.spread,
        can_sleep=entry.runtime is None or entry.runtime in CAN_SLEEP,
        gpus_allowed=None if allowed is hardware else frozenset(gpu.id for gpu in allowed.gpus),
        **_given(
            kv_bytes=entry.kv,
            kv_bytes_per_token=entry.kv_per_token,
            overhead_bytes=entry.overhead,
            asleep_bytes=entry.asleep,
            max_replicas=entry.max_replicas,
        ),
    )
    if model.min_replicas > model.max_replicas:
        least, most = model.min_replicas, model.max_replicas
        raise ConfigError(f"models.{name}: min_replicas is {least}, more than max_replicas, {most}")
    stages = build(build(Stages(), config.load), entry.load)
    profiles = of_model(own, name, spec, model.gpus)
    return Served(model, spec, settings, entry.infer, stages, profiles, files)


def _allowed(entry: schema.ModelEntry, hardware: Hardware) -> Hardware:
    """The GPUs that copies may be on; all of `hardware` itself where nothing is said."""
    if entry.gpus_allowed is None or not hardware.names:
        return hardware
    try:
        return hardware.allowed(entry.gpus_allowed)
    except ConfigError as error:
        raise ConfigError(f"gpus_allowed: {error}") from None


def _without_parts(gpus: int, hardware: Hardware) -> Hardware:
    """A copy on several GPUs needs whole ones: engines cannot join MIG instances."""
    if not any(name.parent for name in hardware.names):
        return hardware
    whole = hardware.whole()
    if not whole.gpus:
        raise ConfigError(
            f"it needs {gpus} GPUs, but those here are MIG instances, which cannot serve one copy"
            " together; give gpus: 1, or leave MIG mode"
        )
    return whole


def slo(section: schema.Slo) -> Slo | None:
    """The limits of a section, or None if it sets none; a limit left out does not apply."""
    limits = build(Slo(), section, ignore=("classes",))
    return None if limits == Slo() else limits


def _facts(
    name: str, entry: schema.ModelEntry, settings: schema.EngineSettings, repository: Path
) -> tuple[ModelSpec | None, int]:
    """The model's shape, if known, with weights of the size that is asked for; and that size."""
    spec, size = _found(name, entry, repository)
    if spec is None:
        return None, size
    if settings.dtype in DTYPE_BYTES:
        spec = dataclasses.replace(spec, dtype_bytes=DTYPE_BYTES[settings.dtype])
    if entry.weights is not None:
        spec = dataclasses.replace(spec, dtype_bytes=entry.weights / spec.params)
    return spec, spec.weights_bytes


def _found(name: str, entry: schema.ModelEntry, repository: Path) -> tuple[ModelSpec | None, int]:
    if entry.path is not None:
        from modelium.analyze import analyze

        folder = repository / entry.path
        try:
            files = analyze(folder)
        except ProfileError:
            if entry.weights is None or not (folder / "model.py").is_file():
                raise
            return None, entry.weights  # code alone tells nothing
        return files.spec, entry.weights or files.weights_bytes
    try:
        spec = catalog.model(entry.catalogue or name)
    except ProfileError:
        if entry.catalogue or entry.weights is None:
            raise
        return None, entry.weights
    return spec, spec.weights_bytes


def _unknown(
    name: str, entry: schema.ModelEntry, weights_bytes: int, own: Sequence[Entry]
) -> Model:
    if entry.infer is None and not of_model(own, name, None, entry.gpus or 1):
        raise ConfigError(
            "cannot estimate speed: unknown architecture. Set one of: `catalogue`, `path`,"
            " `infer: latency`, or a profile"
        )
    if entry.infer is None and not (entry.kv and entry.kv_per_token):
        raise ConfigError(
            "cannot size the KV cache: unknown architecture. Set `kv` and `kv_per_token`"
        )
    return Model(name, weights_bytes, gpus=entry.gpus or 1, family=name)


def _known(
    spec: ModelSpec, entry: schema.ModelEntry, settings: schema.EngineSettings, hardware: Hardware
) -> Model:
    """As vLLM would serve it on the most numerous GPUs that can hold it, if there are any."""
    context = settings.max_model_len or spec.max_context
    pool = max(settings.max_model_len or 0, min(DEFAULT_KV_TOKENS, 8 * context))
    if entry.kv is not None and spec.kv_bytes_per_token:
        # No more GPUs for a cache that a copy is not to have.
        pool = min(pool, entry.kv // spec.kv_bytes_per_token)
    if not hardware.gpus:
        return core_model(spec, gpus=entry.gpus, kv_tokens=pool)
    failures = []
    for gpu in hardware.sizes:
        try:
            return core_model(
                spec,
                gpu=gpu,
                gpus=entry.gpus,
                kv_tokens=pool,
                share=hardware.share,
                most=hardware.most_per_node(gpu),
                batch=build(BatchLimits(), settings, ignore=NO_LIMITS),
            )
        except ProfileError as error:
            failures.append(error)
    raise failures[0]


def _flags(config: schema.Config, entry: schema.ModelEntry) -> schema.EngineSettings:
    """What vLLM is told in other places than `vllm`: in `settings`, and in `flags`, which win.

    What is no plain number there ("auto", "25.6k") is for vLLM alone to understand.
    """
    if entry.runtime not in (None, "vllm", "emulated"):
        return schema.EngineSettings()
    given = {key: str(value) for key, value in entry.settings.items()}
    words = [word for flag in (*config.vllm.flags, *entry.flags) for word in flag.split("=", 1)]
    for flag, value in itertools.pairwise(words):
        if flag.startswith("--"):
            given[flag[2:].replace("-", "_")] = value
    numbers: dict[str, Any] = {
        key: int(given[key])
        for key in NUMBERS
        if given.get(key, "").isdecimal() and int(given[key])
    }
    return schema.EngineSettings(**numbers)


def _given(**values: int | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
