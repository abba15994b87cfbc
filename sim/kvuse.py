"""How much of their KV pools the engines really used, by time bin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from modelium.sim.books import GENERATE
from modelium.sim.timeline import Row
from modelium.state import Copy
from modelium.units import PS_PER_S, ps

if TYPE_CHECKING:
    from modelium.sim.cluster import SimCluster


class KvUse:
    """Reads the engines' integrals of held tokens at the end of each bin and of each instance."""

    def __init__(self, cluster: SimCluster, width_s: float) -> None:
        self._cluster = cluster
        self._width_s = width_s
        self._since_s = 0.0
        self._read: dict[str, float] = {}
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.rows: list[Row] = []

    def watch(self) -> Generator[Any, Any, None]:
        """The SimPy process that ends the bins."""
        while True:
            yield self._cluster.env.timeout(max(1, ps(self._width_s)))
            self.end_bin()

    def read(self, copy: Copy) -> None:
        """Book what this instance used since the last reading."""
        w = self._cluster.plane.w
        if w.kind[copy.slot] != GENERATE:
            return
        total = float(w.engines.engines[copy.slot]["kv_token_ps"])
        used = total - self._read.get(copy.id, 0.0)
        if used > 0:
            self._read[copy.id] = total
            spec = self._cluster.state.models[copy.model]
            token_bytes = spec.kv_bytes_per_token / len(copy.gpus)
            for gpu in copy.gpus:
                self._sums[gpu, copy.model] += used / PS_PER_S * token_bytes

    def forget(self, copy: Copy) -> None:
        """The instance is gone."""
        self.read(copy)
        self._read.pop(copy.id, None)

    def end_bin(self) -> None:
        """Write the rows of the bin that ends now."""
        for copy in self._cluster.state.instances:
            self.read(self._cluster.state.copy(copy))
        start_s, end_s = self._since_s, self._cluster.state.now_s
        if end_s > start_s:
            for (gpu, model), byte_s in sorted(self._sums.items()):
                mean = byte_s / (end_s - start_s)
                self.rows.append((gpu, start_s, end_s, "kv_used", model, "", mean))
        self._sums.clear()
        self._since_s = end_s
