"""What policies read of instances and models, straight from the compiled world's arrays.

Memory views give Python numbers in 40 ns; NumPy scalars would take three times as long, and a
policy reads a hundred of these to decide one miss. All meters of a world share one set of views.
"""

from __future__ import annotations

import math

from modelium.control.state import Copy
from modelium.sim.kernel.arrays import GENERATE, NOW, World
from modelium.units import PS_PER_S


class Views:
    """The columns of a world that the control side reads, a number at a time."""

    def __init__(self, w: World) -> None:
        self.at = w.at.data
        # by slot
        self.kind = w.kind.data
        self.outstanding = w.outstanding.data
        self.served = w.served.data
        self.last_used_ps = w.last_used_ps.data
        self.idle_since_ps = w.idle_since_ps.data
        self.at_engine = w.engines.engines["waiting"]
        self.at_lane = w.lanes.length.data
        # by model, by request
        self.arrivals = w.arrivals.data
        self.n_waiting = w.n_waiting.data
        self.first_waiting = w.first_waiting.data
        self.n_ready = w.n_ready.data
        self.coming = w.coming.data
        self.hungry = w.hungry.data
        self.arrival_ps = w.arrival_ps.data
        self.last_arrival_ps = w.last_arrival_ps.data
        self.rate = w.rate.data
        self.window_s = float(w.rate_window_s[0])
        self.prompt_sum = w.prompt_sum.data
        self.output_sum = w.output_sum.data


class SlotMeters:
    """The meters of one instance."""

    __slots__ = ("_of", "_slot")

    def __init__(self, views: Views, slot: int) -> None:
        self._of, self._slot = views, slot

    @property
    def busy(self) -> bool:
        return self._of.outstanding[self._slot] > 0

    @property
    def running(self) -> int:
        return self._of.outstanding[self._slot] - self.waiting

    @property
    def waiting(self) -> int:
        of, slot = self._of, self._slot
        if of.outstanding[slot] == 0:
            return 0
        return int(of.at_engine[slot]) if of.kind[slot] == GENERATE else of.at_lane[slot]

    @property
    def served(self) -> int:
        return self._of.served[self._slot]

    @property
    def last_used_s(self) -> float:
        return self._of.last_used_ps[self._slot] / PS_PER_S

    @property
    def idle_since_s(self) -> float:
        return self._of.idle_since_ps[self._slot] / PS_PER_S


class SlotCopy(Copy):
    """A `Copy` that shortens the way to what eviction asks of every copy at every miss."""

    __slots__ = ("_out", "_used")

    def __init__(
        self, views: Views, slot: int, name: str, model: str, gpus: tuple[str, ...], node: str
    ) -> None:
        super().__init__(name, model, gpus, node, SlotMeters(views, slot), slot=slot)
        self._out, self._used = views.outstanding, views.last_used_ps

    @property
    def busy(self) -> bool:
        return self._out[self.slot] > 0

    @property
    def last_used_s(self) -> float:
        return self._used[self.slot] / PS_PER_S


class ModelMeters:
    """The demand for one model."""

    __slots__ = ("_m", "_of")

    def __init__(self, views: Views, m: int) -> None:
        self._of, self._m = views, m

    @property
    def arrivals(self) -> int:
        return self._of.arrivals[self._m]

    @property
    def waiting(self) -> int:
        return self._of.n_waiting[self._m]

    @property
    def oldest_wait_s(self) -> float:
        of, m = self._of, self._m
        if of.n_waiting[m] == 0:
            return 0.0
        return (of.at[NOW] - of.arrival_ps[of.first_waiting[m]]) / PS_PER_S

    @property
    def last_arrival_s(self) -> float:
        of, m = self._of, self._m
        return of.last_arrival_ps[m] / PS_PER_S if of.arrivals[m] else -math.inf

    @property
    def request_rate_per_s(self) -> float:
        of, m = self._of, self._m
        quiet_s = (of.at[NOW] - of.last_arrival_ps[m]) / PS_PER_S
        return of.rate[m] * math.exp(-quiet_s / of.window_s)

    @property
    def prompt_tokens(self) -> int:
        return self._of.prompt_sum[self._m]

    @property
    def output_tokens(self) -> int:
        return self._of.output_sum[self._m]
