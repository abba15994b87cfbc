"""Belady's rule with costs: told the future, it shows how far the others are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.on_demand import OnDemand
from modelium.units import GIB


class BeladyCost(OnDemand):
    """Evict the largest (time to its next request) * size / cost: it must be told the trace.

    Optimal when sizes and costs are equal; with others a strong heuristic, not a bound.

    future: arrival times of each model in seconds, ascending.
    Source: Belady, IBM Systems Journal 5(2), 1966; weighted by size and cost of loading.
    """

    wants_trace = True
    label = "-(next use in s)*GiB/cost"

    def __init__(self, future: Mapping[str, Sequence[float]], **options: Any) -> None:
        self._future = future
        super().__init__(evict=self._keep_value, **options)

    def _keep_value(self, state: ClusterState, copy: Instance) -> tuple[float, float]:
        arrivals = self._future.get(copy.model, ())
        following = bisect_right(arrivals, state.now_s)
        if following == len(arrivals):
            return -float("inf"), copy.last_used_s
        spec = state.models[copy.model]
        size = spec.bytes_per_gpu() * spec.gpus / GIB
        cost_s = state.costs.load_s(copy.model, copy.gpus) or 1e-9
        return -(arrivals[following] - state.now_s) * size / cost_s, copy.last_used_s
