"""Seconds of collectives among the GPUs of one node, from aiconfigurator's measurements.

An all-reduce takes the faster of vLLM's own kernel (as replayed in a CUDA graph) and NCCL: which of
both an engine uses depends on peer access between the GPUs, and the slower is the exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelium.errors import ProfileError
from modelium.sim.fit.tables import read_parquet

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by message size, linear between the sizes measured and proportional beyond."""

    sizes: Floats
    seconds: Floats

    def __call__(self, size_bytes: Floats) -> Floats:
        beyond = np.maximum(size_bytes / self.sizes[-1], 1.0)
        seconds: Floats = np.interp(size_bytes, self.sizes, self.seconds) * beyond
        return seconds


@dataclass(frozen=True, slots=True)
class Collectives:
    """What `gpus` GPUs of one kind and node do together."""

    own: Curve | None
    nccl: Curve
    gather: Curve
    scatter: Curve

    def all_reduce(self, size_bytes: Floats) -> Floats:
        """Seconds to sum `size_bytes` over the GPUs."""
        nccl = self.nccl(size_bytes)
        return nccl if self.own is None else np.minimum(self.own(size_bytes), nccl)


def collectives(system: Path, gpus: int) -> Collectives:
    """Read the collectives of `gpus` GPUs from a system's folder, such as `h100_sxm`.

    Raises ProfileError where the folder has no NCCL measurements for that many.
    """
    nccl = _newest(system, "comm/nccl/*/nccl_perf.parquet")
    own = _newest(system, "comm/vllm/*/custom_allreduce_perf.parquet")
    curves = [_curve(nccl, gpus, op_name=op, nccl_dtype="half") for op in _OPERATIONS]
    if None in curves:
        raise ProfileError(f"{system} has no NCCL measurements for {gpus} GPUs")
    reduce, gather, scatter = (curve for curve in curves if curve is not None)
    return Collectives(_curve(own, gpus, backend="vllm_graph"), reduce, gather, scatter)


_OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter")


def _newest(system: Path, pattern: str) -> Path:
    found = sorted(system.glob(pattern))
    if not found:
        raise ProfileError(f"{system} has no {pattern}")
    return found[-1]


def _curve(file: Path, gpus: int, **wanted: str) -> Curve | None:
    rows = read_parquet(file, num_gpus=gpus, **wanted)
    if not len(rows["latency"]):
        return None
    sizes, first = np.unique(rows["message_size"].astype(float), return_index=True)
    return Curve(sizes, rows["latency"][first] * 1e-3)
