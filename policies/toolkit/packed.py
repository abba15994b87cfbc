"""Periodic re-packing from measured demand: `ffd` and `bfd` differ only in the GPU they prefer."""

from __future__ import annotations

from modelium.core import ClusterState
from modelium.policies.lru import Lru
from modelium.policies.toolkit.bin_packing import pack
from modelium.policies.toolkit.diff import Target
from modelium.policies.toolkit.placement import Place
from modelium.policies.toolkit.planned import Planned


class Packed(Planned):
    """Pack copies by decreasing size every `every_s`; a miss in between is answered as by `lru`.

    every_s: time between plans.
    rho_max: share of a GPU's time that may be planned for.
    smoothing: weight of the newest period in the request rates.
    """

    def __init__(
        self, place: Place, *, every_s: float = 300.0, rho_max: float = 0.7, smoothing: float = 0.5
    ) -> None:
        self._place = place
        self._rho_max = rho_max
        self._smoothing = smoothing
        self._rates_per_s: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._counted_s = 0.0
        super().__init__(self._pack, every_s, fallback=Lru())

    def _pack(self, state: ClusterState) -> Target:
        self._measure(state)
        return pack(state, self._rates_per_s, self._place, self._rho_max)

    def _measure(self, state: ClusterState) -> None:
        """Smooth the rates of the periods since the last plan exponentially."""
        counts = {model: asked.arrivals for model, asked in state.demand.items()}
        span_s = state.now_s - self._counted_s
        if self._counts and span_s > 0:
            for model, count in counts.items():
                new = (count - self._counts.get(model, 0)) / span_s
                old = self._rates_per_s.get(model, new)
                self._rates_per_s[model] = old + self._smoothing * (new - old)
        self._counts, self._counted_s = counts, state.now_s
