"""What policies read of instances and models, straight from the compiled world's arrays.

Memory views give Python numbers in 40 ns; NumPy scalars would take three times as long, and a
policy reads a hundred of these to decide one miss.
"""

from __future__ import annotations

import math

from modelium.sim.books import GENERATE, NOW, World
from modelium.state import Copy
from modelium.units import PS_PER_S


class SlotMeters:
    """The meters of one instance."""

    __slots__ = ("_idle", "_kind", "_lanes", "_out", "_queued", "_served", "_slot", "_used")

    def __init__(self, w: World, slot: int) -> None:
        self._slot = slot
        self._out = w.outstanding.data
        self._served = w.served.data
        self._used = w.last_used_ps.data
        self._idle = w.idle_since_ps.data
        self._kind, self._lanes = w.kind, w.lanes
        self._queued = w.engines.engines["waiting"]

    @property
    def busy(self) -> bool:
        return self._out[self._slot] > 0

    @property
    def running(self) -> int:
        return int(self._out[self._slot]) - self.waiting

    @property
    def waiting(self) -> int:
        slot = self._slot
        if self._out[slot] == 0:
            return 0
        if self._kind[slot] == GENERATE:
            return int(self._queued[slot])
        return int(self._lanes.length[slot])

    @property
    def served(self) -> int:
        return self._served[self._slot]

    @property
    def last_used_s(self) -> float:
        return self._used[self._slot] / PS_PER_S

    @property
    def idle_since_s(self) -> float:
        return self._idle[self._slot] / PS_PER_S


class SlotCopy(Copy):
    """A `Copy` that shortens the way to what eviction asks of every copy at every miss."""

    __slots__ = ("_out", "_used")

    def __init__(
        self, w: World, slot: int, name: str, model: str, gpus: tuple[str, ...], node: str
    ) -> None:
        super().__init__(name, model, gpus, node, SlotMeters(w, slot), slot=slot)
        self._out, self._used = w.outstanding.data, w.last_used_ps.data

    @property
    def busy(self) -> bool:
        return self._out[self.slot] > 0

    @property
    def last_used_s(self) -> float:
        return self._used[self.slot] / PS_PER_S


class ModelMeters:
    """The demand for one model."""

    __slots__ = ("_at", "_m", "_w")

    def __init__(self, w: World, m: int) -> None:
        self._w, self._m, self._at = w, m, w.at.data

    @property
    def arrivals(self) -> int:
        return int(self._w.arrivals[self._m])

    @property
    def waiting(self) -> int:
        return int(self._w.n_waiting[self._m])

    @property
    def oldest_wait_s(self) -> float:
        w, m = self._w, self._m
        if w.n_waiting[m] == 0:
            return 0.0
        return (self._at[NOW] - int(w.arrival_ps[w.first_waiting[m]])) / PS_PER_S

    @property
    def last_arrival_s(self) -> float:
        w, m = self._w, self._m
        return int(w.last_arrival_ps[m]) / PS_PER_S if w.arrivals[m] else -math.inf

    @property
    def request_rate_per_s(self) -> float:
        w, m = self._w, self._m
        quiet_s = (self._at[NOW] - int(w.last_arrival_ps[m])) / PS_PER_S
        return float(w.rate[m]) * math.exp(-quiet_s / float(w.rate_window_s[0]))

    @property
    def prompt_tokens(self) -> int:
        return int(self._w.prompt_sum[self._m])

    @property
    def output_tokens(self) -> int:
        return int(self._w.output_sum[self._m])
