"""Random eviction: what any rule must beat to be worth its name."""

from __future__ import annotations

import random
from typing import Any

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.on_demand import OnDemand


class RandomEvict(OnDemand):
    """Evict a random idle copy; with equal sizes, each is as likely.

    seed: where the random numbers begin; same seed and events, same decisions.
    Source: has the hit ratio of FIFO under independent requests (Gelenbe, IEEE ToC 22(6), 1973).
    """

    label = "random"

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        self._random = random.Random(seed)
        super().__init__(evict=self._draw, **options)

    def _draw(self, state: ClusterState, copy: Instance) -> float:
        return self._random.random()
