"""Landlord: copies pay rent for their room out of a credit; who has none left must go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.eviction import Victim
from modelium.policies.toolkit.on_demand import OnDemand
from modelium.units import GIB


class Landlord(OnDemand):
    """Charge all copies rent in proportion to size until an idle one has no credit; evict that.

    A copy's credit is what loading it costs, in seconds. A hit renews it: by `renewal` of the way
    from what is left to the full cost. Copies that cannot leave now pay too and may run into debt.

    renewal: 1 resets to the full cost (then, of idle copies, it evicts as gdsf:variant=gds does), 0
    never renews (then it is first in, first out, weighted by cost and size).
    Source: Young, Algorithmica 33(3), 2002; k/(k-h+1)-competitive for any sizes and costs.
    """

    label = "landlord credit/GiB"

    def __init__(self, *, renewal: float = 1.0, **options: Any) -> None:
        self._renewal = renewal
        self._credit: dict[str, float] = {}
        self._served: dict[str, int] = {}
        super().__init__(evict=self._rent_left, **options)

    def evicted(self, state: ClusterState, victims: Sequence[Victim]) -> None:
        """Collect rent until each victim in turn has no credit left."""
        self._credit = {name: self._balance(state, c) for name, c in state.instances.items()}
        self._served = {name: copy.served for name, copy in state.instances.items()}
        for _, victim, leaving in victims:
            rent = max(0.0, self._credit[victim] / _size(state, leaving))
            for name, copy in state.instances.items():
                self._credit[name] -= rent * _size(state, copy)

    def _rent_left(self, state: ClusterState, copy: Instance) -> tuple[float, float]:
        return self._balance(state, copy) / _size(state, copy), copy.last_used_s

    def _balance(self, state: ClusterState, copy: Instance) -> float:
        """Credit before the next rent, with the hits since the last one."""
        served = self._served.get(copy.id)
        if served == copy.served:
            return self._credit[copy.id]
        cost_s = state.costs.load_s(copy.model, copy.gpus)
        if served is None:
            return cost_s
        return self._renewal * cost_s + (1.0 - self._renewal) * self._credit[copy.id]


def _size(state: ClusterState, copy: Instance) -> float:
    spec = state.models[copy.model]
    return spec.bytes_per_gpu() * spec.gpus / GIB
