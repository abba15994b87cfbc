"""The section `profiles`: step times measured on the user's machines, before published ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from modelium import catalog
from modelium.catalog import Architecture, ModelSpec
from modelium.catalog.gpunames import parse
from modelium.config.validation import problems
from modelium.config.values import Count, GpuKind, NotNegative, Read, Seconds, Section, adapter
from modelium.errors import SLIP, ConfigError, ProfileError, did_you_mean

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from modelium.sim.profiles import Entry

Bend = tuple[Count, float]


class Step(Section):
    """Coefficients of a step's time in seconds; docs/profiles.md has the form."""

    decode_c: Seconds = 0.0
    """Decode-only steps: whatever the batch."""
    decode_lo: Seconds = 0.0
    """Per sequence up to the hinge."""
    decode_hi: Seconds = 0.0
    """Per sequence past the hinge."""
    decode_hinge: Count
    decode_kv: Seconds = 0.0
    """Per token of context."""
    mixed_c: Seconds = 0.0
    """Steps with a prefill in them: whatever the batch."""
    mixed_lo: Seconds = 0.0
    """Per token up to the hinge."""
    mixed_hi: Seconds = 0.0
    """Per token past the hinge."""
    mixed_hinge: Count
    mixed_decode: Seconds = 0.0
    """Per decoding sequence."""
    mixed_prefill: Seconds = 0.0
    """Per prefilling sequence."""
    mixed_kv: Seconds = 0.0
    """Per token of context of decoding sequences."""
    mixed_ctx: Seconds = 0.0
    """Per token computed and token already there."""
    mixed_sq: Seconds = 0.0
    """Per square of tokens computed at once."""
    interference: NotNegative = 0.0
    """Extra slow-down per further busy instance on the GPU, on top of fair time sharing."""
    decode_bends: list[Bend] = field(default_factory=list)
    """Further bends of decode-only steps: sequences, and change of slope there."""

    def __post_init__(self) -> None:
        for kind, least in (
            ("decode", self.decode_c + self.decode_lo),
            ("mixed", self.mixed_c + self.mixed_lo),
        ):
            if not 0 < least < float("inf"):
                raise ValueError(f"a {kind} step takes {least:g} s: give {kind}_c or {kind}_lo")


class ProfileEntry(Section):
    """The step time of one model on one kind of GPU, in the form that `modelium.sim.fit` writes."""

    model: str
    """A model of this configuration; or of the catalogue, for all models of that shape."""
    gpu: GpuKind
    tp: Count = 1
    """Tensor-parallel size."""
    replicas: Count = 1
    """Data-parallel engines that share the model's experts."""
    measured: str = ""
    """Where and when, for reports."""
    skew_alpha: NotNegative = 0.0
    """Cost of uneven context lengths."""
    step: Step
    error: dict[str, dict[str, float]] | None = None
    """Of the fit, for "decode" and "mixed"."""


@dataclass
class _Source:
    name: str
    licence: str = ""


@dataclass
class _Document:
    """A file of the fit; its head says more than is needed here."""

    source: _Source
    profiles: list[ProfileEntry]


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


class _Either:
    """A text is a file; of all else it is told what an entry lacks, not what a text does."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import core_schema

        ways = {kind: handler.generate_schema(kind) for kind in (str, ProfileEntry)}
        return core_schema.tagged_union_schema(
            {f"<{kind.__name__}>": way for kind, way in ways.items()},
            lambda given: "<str>" if isinstance(given, str) else "<ProfileEntry>",
        )


Profiles = Annotated[
    list[Annotated[str | ProfileEntry, _Either()]],
    Read(_listed, str | ProfileEntry | list[str | ProfileEntry]),
]


def measured(
    given: Sequence[str | ProfileEntry], models: Iterable[str], gpus: Collection[str]
) -> list[Entry]:
    """All entries that are configured, in order. Raises ConfigError with the key or the file.

    `models` and `gpus` are known beside those of the catalogue.
    """
    from modelium.sim.profiles import Entry

    found: list[Entry] = []
    for i, one in enumerate(given):
        try:
            if isinstance(one, str):
                entries = _from_file(Path(one))
                for gpu in dict.fromkeys(entry.gpu for entry in entries):
                    _check_gpu(gpu, gpus, f"{one}: ")
                found += entries
            else:
                _check_name(one.model, models)
                _check_gpu(one.gpu, gpus)
                found.append(_entry(Entry, one, "configuration", ""))
        except ConfigError as error:
            raise ConfigError(f"profiles[{i}]: {error}") from None
    return found


def of_model(
    entries: Sequence[Entry], name: str, spec: ModelSpec | None, tp: int
) -> Mapping[str, Entry]:
    """The first entry for each kind of GPU that is of this model, by its name or its shape."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.tp == tp and entry.replicas == 1 and _is(entry.model, name, spec):
            found.setdefault(entry.gpu, entry)
    return found


def same_work(a: ModelSpec, b: ModelSpec) -> bool:
    """Whether both compute the same; the size of a model on disk is known to about 1 %."""
    shape = all(getattr(a, field.name) == getattr(b, field.name) for field in fields(Architecture))
    return shape and isclose(a.dtype_bytes, b.dtype_bytes, rel_tol=0.01)


def _is(measured: str, name: str, spec: ModelSpec | None) -> bool:
    if measured == name:
        return True
    try:
        return spec is not None and same_work(catalog.model(measured), spec)
    except ProfileError:
        return False


def _check_name(name: str, models: Iterable[str]) -> None:
    known = [*models, *catalog.models()]
    if name in known:
        return
    try:
        catalog.model(name)
    except ProfileError:
        raise ConfigError(
            f"model: no model called {name!r}, here or in the catalogue.{did_you_mean(name, known)}"
        ) from None


def _check_gpu(kind: str, gpus: Collection[str], where: str = "") -> None:
    """A name with its memory, "rtx-3080-10g", may be of a GPU on another machine."""
    slip = did_you_mean(kind, catalog.gpus(), SLIP)
    if kind in gpus or (parse(kind).size_gib is not None and not slip):
        return
    try:
        catalog.gpu(kind)
    except ProfileError as error:
        raise ConfigError(f"{where}gpu: {error} Another one has to be in cluster.kinds") from None


def _from_file(path: Path) -> list[Entry]:
    from pydantic import ValidationError

    from modelium.sim.profiles import Entry

    try:
        document = adapter(_Document).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `python -m modelium.sim.fit` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        raise ConfigError(problems(path, error)[0]) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    source = document.source
    return [_entry(Entry, one, source.name, source.licence) for one in document.profiles]


def _entry(kind: type[Entry], one: ProfileEntry, source: str, licence: str) -> Entry:
    given: dict[str, Any] = {
        key: getattr(one, key)
        for key in ("model", "gpu", "tp", "replicas", "measured", "skew_alpha", "error")
    }
    step = asdict(one.step)
    return kind(**given, step=step, source=source, licence=licence, origin="calibrated")
