"""How much of their KV pools the engines really used, by time bin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from modelium.state import Copy
from modelium.timeline import Row
from modelium.units import PS_PER_S, ps

if TYPE_CHECKING:
    from modelium.sim.cluster import SimCluster


class KvUse:
    """Reads the engines' integrals of held tokens at the end of each bin and of each instance."""

    def __init__(self, cluster: SimCluster, width_s: float) -> None:
        self._cluster = cluster
        self._width_s = width_s
        self._since_s = 0.0
        self._total = cluster.plane.w.engines.engines["kv_token_ps"]
        self._lives = cluster.plane.w.engines.counters.data
        self._seen = np.zeros_like(self._total)
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._cells: dict[int, tuple[float, list[tuple[str, str]]]] = {}
        """By slot: bytes of a token on each of its GPUs, and whose sums they count for."""
        self.rows: list[Row] = []

    def watch(self) -> Generator[Any, Any, None]:
        """The SimPy process that ends the bins."""
        while True:
            yield self._cluster.env.timeout(max(1, ps(self._width_s)))
            self.end_bin()

    def forget(self, copy: Copy) -> None:
        """The instance is gone: book its last use; its slot's next engine begins at zero."""
        slot = copy.slot
        if (used := self._total[slot] - self._seen[slot]) > 0:
            self._book(slot, float(used) / PS_PER_S)
        self._seen[slot] = self._total[slot] = 0.0
        self._cells.pop(slot, None)

    def end_bin(self) -> None:
        """Write the rows of the bin that ends now."""
        if self._lives[0]:  # else no engine has held a token yet
            slots = np.flatnonzero(self._total > self._seen)
            used_s = (self._total[slots] - self._seen[slots]) / PS_PER_S
            self._seen[slots] = self._total[slots]
            for slot, token_s in zip(slots.tolist(), used_s.tolist(), strict=True):
                self._book(slot, token_s)
        start_s, end_s = self._since_s, self._cluster.state.now_s
        if end_s > start_s:
            for (gpu, model), byte_s in sorted(self._sums.items()):
                mean = byte_s / (end_s - start_s)
                self.rows.append((gpu, start_s, end_s, "kv_used", model, "", mean))
        self._sums.clear()
        self._since_s = end_s

    def _book(self, slot: int, token_s: float) -> None:
        share_bytes, cells = self._cells.get(slot) or self._enter(slot)
        for cell in cells:
            self._sums[cell] += token_s * share_bytes

    def _enter(self, slot: int) -> tuple[float, list[tuple[str, str]]]:
        copy = self._cluster.plane.copy_in(slot)
        assert copy is not None, "only engines of instances hold tokens"
        share_bytes = self._cluster.state.models[copy.model].kv_bytes_per_token / len(copy.gpus)
        cells = self._cells[slot] = share_bytes, [(gpu, copy.model) for gpu in copy.gpus]
        return cells
