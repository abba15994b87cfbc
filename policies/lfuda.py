"""LFU with dynamic ageing: popularity that old favourites lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.ageing import AtLastHit
from modelium.policies.toolkit.eviction import Victim
from modelium.policies.toolkit.on_demand import OnDemand


class Lfuda(OnDemand):
    """Evict the lowest key L + f: f requests since loading, L the key last evicted before the hit.

    Source: Arlitt et al., Performance Evaluation Review 27(4), 2000.
    """

    label = "lfuda"

    def __init__(self, **options: Any) -> None:
        self._clock = 0.0
        self._keys = AtLastHit(lambda state, copy: self._clock + copy.served)
        super().__init__(evict=self._key, **options)

    def evicted(self, state: ClusterState, victims: Sequence[Victim]) -> None:
        """Age all others: the clock rises to the last victim's key."""
        self._keys.settle(state)
        self._clock = max(self._clock, victims[-1][0][0])

    def _key(self, state: ClusterState, copy: Instance) -> tuple[float, float]:
        return self._keys.get(state, copy), copy.last_used_s
