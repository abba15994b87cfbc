"""Step times of models on GPUs: fitted to published measurements, or else from data sheets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modelium import catalog
from modelium.catalog import GpuSpec, ModelSpec
from modelium.sim.profiles.roofline import Device, Work, roofline
from modelium.sim.profiles.spread import DEFAULT_SPREAD, context_spread, uneven
from modelium.sim.spec import StepTime

__all__ = [
    "DEFAULT_SPREAD", "Entry", "Profile", "context_spread", "load", "roofline_profile",
    "roofline_step", "step_time",
]  # fmt: skip

FILES = ("llmservingsim.json", "aiconfigurator.json")
"""In order of trust: the first has measured mixed batches, too."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A step time and where it comes from."""

    step: StepTime
    origin: str
    """"calibrated" (on the user's machines), "fitted" (to published figures) or "roofline"."""
    source: str
    licence: str = ""
    error: dict[str, dict[str, float]] | None = None
    """Of a fit: r2, mape, p95 (fractions) and steps, for "decode" and "mixed"."""


def step_time(
    model: str,
    gpu: str | GpuSpec,
    tp: int = 1,
    *,
    replicas: int = 1,
    spread: float = DEFAULT_SPREAD,
) -> Profile:
    """The best step time there is for a catalogue model on `tp` GPUs of a kind.

    A fit serves all models of the same shape, on GPUs with the catalogue's figures. With
    `replicas`, that many data-parallel engines share the model's experts (the roofline knows no
    such sharing). `spread` is the largest over the mean context in a batch (`context_spread`).
    Raises ProfileError for names that are not in the catalogue.
    """
    spec = catalog.model(model)
    device = catalog.gpu(gpu) if isinstance(gpu, str) else gpu
    for entry in _shipped():
        here = _is(device, entry.gpu) and (entry.tp, entry.replicas) == (tp, replicas)
        if here and _same_shape(catalog.model(entry.model), spec):
            return entry.profile(spread)
    return roofline_profile(spec, device, tp)


def roofline_profile(model: ModelSpec, gpu: GpuSpec, tp: int = 1) -> Profile:
    """The roofline of a model on `tp` GPUs, and what it rests on."""
    figures = "assumed figures" if catalog.note(gpu) else "data sheets"
    step = roofline_step(model, gpu, tp)
    return Profile(step, "roofline", f"{figures}: {gpu.name}, {model.name}")


def load(file: Path, *, spread: float = DEFAULT_SPREAD) -> list[Profile]:
    """The profiles of a file that `python -m modelium.sim.fit` wrote."""
    return [entry.profile(spread) for entry in _read(file)]


def roofline_step(model: ModelSpec, gpu: GpuSpec, tp: int = 1) -> StepTime:
    """The roofline of a model on `tp` GPUs of a kind."""
    expert_bytes, share = 0.0, 1.0
    if model.experts:
        share = model.active_experts / model.experts
        idle = model.counted_params - model.counted_active_params
        expert_bytes = idle / (1 - share) * model.dtype_bytes
    work = Work(
        weights_bytes=model.weights_bytes,
        flops_per_token=model.flops_per_token,
        attention_flops=model.attention_flops_per_context_token,
        kv_bytes_per_token=model.kv_bytes_per_token * model.kv_copies(tp),
        layers=model.layers,
        hidden=model.hidden,
        expert_bytes=expert_bytes,
        expert_share=share,
    )
    device = Device(gpu.bf16_flops, gpu.bandwidth_bytes_per_s, gpu.peer_bytes_per_s)
    return roofline(work, device, tp)


@dataclass(frozen=True, slots=True)
class Entry:
    """One fit: coefficients for even contexts, and what they were fitted to."""

    model: str
    gpu: str
    tp: int
    replicas: int
    measured: str
    skew_alpha: float
    step: dict[str, Any]
    error: dict[str, dict[str, float]] | None
    source: str
    licence: str
    origin: str = "fitted"

    def profile(self, spread: float = DEFAULT_SPREAD) -> Profile:
        """The step time for contexts of that spread."""
        zero = dict.fromkeys(_NEEDED, 0.0)
        bends = tuple((int(at), float(by)) for at, by in self.step.get("decode_bends", ()))
        even = StepTime(**(zero | self.step | {"decode_bends": bends}))
        step = uneven(even, self.skew_alpha, spread)
        source = f"{self.source} ({self.measured})" if self.measured else self.source
        return Profile(step, self.origin, source, self.licence, self.error)


_NEEDED = (
    "decode_c", "decode_lo", "decode_hi", "decode_hinge", "decode_kv",
    "mixed_c", "mixed_lo", "mixed_hi", "mixed_hinge",
)  # fmt: skip


@cache
def _shipped() -> tuple[Entry, ...]:
    return tuple(entry for name in FILES for entry in _read(Path(__file__).parent / name))


def _read(file: Path) -> list[Entry]:
    document = json.loads(file.read_text(encoding="utf-8"))
    source, licence = document["source"]["name"], document["source"]["licence"]
    return [Entry(**one, source=source, licence=licence) for one in document["profiles"]]


def _is(gpu: GpuSpec, name: str) -> bool:
    """Whether it computes as fast as the catalogue's GPU of that name."""
    known = catalog.gpus()[name]
    return gpu.name == name and all(
        getattr(gpu, figure) == getattr(known, figure)
        for figure in ("bf16_flops", "bandwidth_bytes_per_s", "peer_bytes_per_s")
    )


def _same_shape(a: ModelSpec, b: ModelSpec) -> bool:
    """Whether a step of both is the same work; vocabularies may differ."""
    return all(getattr(a, name) == getattr(b, name) for name in _SHAPE)


_SHAPE = (
    "layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "experts",
    "active_experts", "expert_intermediate", "shared_experts", "dense_layers", "kv_lora_rank",
    "sliding_layers", "dtype_bytes", "kv_dtype_bytes",
)  # fmt: skip
