"""Who held what memory of which GPU when: the rows of `timeline.parquet`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelium.control.state import Copy, State

if TYPE_CHECKING:
    from modelium.results.record import Column

Row = tuple[str, float, float, str, str, str, float]
"""gpu, start_s, end_s, kind, model, instance, value"""


class Timeline:
    """Intervals of residency; `mark` ends the last one of a copy and begins the next."""

    def __init__(self, state: State, held: Mapping[str, int]) -> None:
        """`held`: bytes that each copy really holds on each of its GPUs."""
        self._state = state
        self._held = held
        self._open: dict[str, tuple[Copy, str, float, int]] = {}
        self.rows: list[Row] = []

    def mark(self, copy: Copy, kind: str) -> None:
        """From now on `copy` is `kind` (loading, ready, leaving, asleep), or gone if empty."""
        now_s = self._state.now_s
        before = self._open.pop(copy.id, None)
        if before is not None and before[2] < now_s:
            self.rows += self._of(*before, now_s)
        if kind:
            held = self._held.get(copy.id, 0) if kind != "asleep" else copy.bytes_per_gpu
            self._open[copy.id] = (copy, kind, now_s, held)

    def take(self) -> list[Row]:
        """The intervals that have ended since they were last taken; they are kept no longer."""
        ended, self.rows = self.rows, []
        return ended

    def under_way(self) -> list[Row]:
        """The intervals that have not ended, as far as they have come."""
        now_s = self._state.now_s
        return [
            row for one in self._open.values() if one[2] < now_s for row in self._of(*one, now_s)
        ]

    def close(self) -> None:
        """The run is over."""
        for copy, _, _, _ in list(self._open.values()):
            self.mark(copy, "")

    def _of(self, copy: Copy, kind: str, start_s: float, held: int, end_s: float) -> list[Row]:
        return [
            (gpu, start_s, end_s, part, copy.model, copy.id, float(size))
            for part, size in self._parts(copy, kind, held)
            for gpu in (copy.gpus if size else ())
        ]

    def _parts(self, copy: Copy, kind: str, held: int) -> list[tuple[str, int]]:
        if kind != "ready":
            return [(kind, held)]
        spec = self._state.models[copy.model]
        weights = -(-spec.weights_bytes // spec.gpus)
        kv = held - weights - spec.overhead_bytes
        return [("weights", weights), ("kv", kv), ("overhead", spec.overhead_bytes)]


def busy_columns(
    seconds: NDArray[np.float64], width_s: float, gpus: list[str], end_s: float
) -> dict[str, Column]:
    """Busy share of each GPU by time bin; engines that share time never sum above 1."""
    bins = np.arange(min(seconds.shape[1], math.ceil(end_s / width_s)))
    start_s, stop_s = bins * width_s, np.minimum((bins + 1) * width_s, end_s)
    bins = bins[stop_s > start_s]
    start_s, stop_s, number = start_s[bins], stop_s[bins], len(gpus)
    shares = seconds[:number, bins] / (stop_s - start_s)
    none = np.zeros(shares.size, np.int32)
    return {
        "gpu": (np.repeat(np.arange(number, dtype=np.int32), len(bins)), gpus),
        "start_s": np.tile(start_s, number),
        "end_s": np.tile(stop_s, number),
        "kind": (none, ["busy"]),
        "model": (none, [""]),
        "instance": (none, [""]),
        "value": np.minimum(1.0, shares).reshape(-1),
    }
