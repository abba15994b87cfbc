"""GreedyDual-Size-Frequency: popularity, cost of coming back and size in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.ageing import AtLastHit
from modelium.policies.toolkit.eviction import Victim
from modelium.policies.toolkit.on_demand import OnDemand
from modelium.units import GIB


class Gdsf(OnDemand):
    """Evict the lowest clock + frequency * cost / size, as FaasCache does for containers.

    Frequency counts requests since loading over all copies of the model; cost is the seconds that
    loading it again would take from where its weights would then be; size is in GiB. All are taken
    at the last hit. The clock rises to the key of each victim, which ages the others.

    variant: leave factors out: gds (clock + cost/size), freq (clock + frequency*cost),
    size (clock + frequency/size).
    Source: Fuerst and Sharma, ASPLOS'21; Cherkasova, HPL-98-69R1, 1998; gds: Cao and Irani, 1997.
    """

    def __init__(
        self, *, variant: Literal["gdsf", "gds", "freq", "size"] = "gdsf", **options: Any
    ) -> None:
        self.label = variant
        self._variant = variant
        self._clock = 0.0
        self._keys = AtLastHit(self._now)
        super().__init__(evict=self._key, **options)

    def evicted(self, state: ClusterState, victims: Sequence[Victim]) -> None:
        """Age all others: the clock rises to the last victim's key."""
        self._keys.settle(state)
        self._clock = max(self._clock, victims[-1][0][0])

    def _key(self, state: ClusterState, copy: Instance) -> tuple[float, float]:
        """A hit on one copy refreshes all copies of its model; of equals, the oldest leaves."""
        key = max(self._keys.get(state, other) for other in state.instances_of(copy.model))
        return key, copy.last_used_s

    def _now(self, state: ClusterState, copy: Instance) -> float:
        frequency = cost_s = size = 1.0
        if self._variant != "gds":
            frequency = sum(other.served for other in state.instances_of(copy.model))
        if self._variant != "size":
            cost_s = state.costs.load_s(copy.model, copy.gpus)
        if self._variant != "freq":
            spec = state.models[copy.model]
            size = spec.bytes_per_gpu() * spec.gpus / GIB
        return self._clock + frequency * cost_s / size
