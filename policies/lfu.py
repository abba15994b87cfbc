"""Least frequently used: popularity without ageing."""

from __future__ import annotations

from typing import Any

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.on_demand import OnDemand


class Lfu(OnDemand):
    """Evict the idle copy of the least requested model; of equals, the least recently used.

    in_cache: count only requests since the copy was loaded, instead of all that ever arrived.
    Source: the classical rule; counting over evictions is called perfect LFU (Breslau et al.,
    INFOCOM'99).
    """

    label = "requests"

    def __init__(self, *, in_cache: bool = False, **options: Any) -> None:
        super().__init__(evict=_in_cache if in_cache else _ever, **options)


def _ever(state: ClusterState, copy: Instance) -> tuple[float, float]:
    return state.demand[copy.model].arrivals, copy.last_used_s


def _in_cache(state: ClusterState, copy: Instance) -> tuple[float, float]:
    return copy.served, copy.last_used_s
