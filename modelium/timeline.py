"""Who held what memory of which GPU when: the rows of `timeline.parquet`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelium.state import Copy, State

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
            self._write(*before, now_s)
        if kind:
            held = self._held.get(copy.id, 0) if kind != "asleep" else copy.bytes_per_gpu
            self._open[copy.id] = (copy, kind, now_s, held)

    def close(self) -> None:
        """The run is over."""
        for copy, _, _, _ in list(self._open.values()):
            self.mark(copy, "")

    def _write(self, copy: Copy, kind: str, start_s: float, held: int, end_s: float) -> None:
        for part, size in self._parts(copy, kind, held):
            if size:
                self.rows += [
                    (gpu, start_s, end_s, part, copy.model, copy.id, float(size))
                    for gpu in copy.gpus
                ]

    def _parts(self, copy: Copy, kind: str, held: int) -> list[tuple[str, int]]:
        if kind != "ready":
            return [(kind, held)]
        spec = self._state.models[copy.model]
        weights = -(-spec.weights_bytes // spec.gpus)
        kv = held - weights - spec.overhead_bytes
        return [("weights", weights), ("kv", kv), ("overhead", spec.overhead_bytes)]


def busy_rows(seconds: np.ndarray, width_s: float, gpus: list[str], end_s: float) -> list[Row]:
    """Busy share of each GPU by time bin; engines that share time never sum above 1."""
    number = min(seconds.shape[1], int(np.ceil(end_s / width_s)))
    bins = [(k, k * width_s, min((k + 1) * width_s, end_s)) for k in range(number)]
    bins = [(k, start, stop) for k, start, stop in bins if stop > start]
    return [
        (gpu, start, stop, "busy", "", "", min(1.0, busy_s[k] / (stop - start)))
        for gpu, busy_s in zip(gpus, seconds.tolist(), strict=False)
        for k, start, stop in bins
    ]
