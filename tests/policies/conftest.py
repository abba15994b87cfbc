"""Small worlds for the tests of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from modelium.control.costs import INSTANT, ConfiguredFacts, Links
from modelium.core import Action, Done, Event, Gpu, Limits, Load, Model, Node, Policy, traits
from modelium.testing import FakeCluster
from modelium.units import GIB

INF = float("inf")


class World:
    """A fake cluster with GPUs g0, g1, ..., on which nothing costs time unless `facts` say so."""

    def __init__(
        self,
        sizes_gib: Mapping[str, float],
        gpus_gib: Sequence[float] = (80,),
        *,
        more: Mapping[str, Mapping[str, object]] | None = None,
        nodes: Sequence[int] | None = None,
        host_gib: int = 1000,
        limits: Limits | None = None,
        facts: ConfiguredFacts | None = None,
        service_s: float = 1.0,
    ) -> None:
        places = nodes or [0] * len(gpus_gib)
        models = [
            Model(name, round(size * GIB), **(more or {}).get(name, {}))  # type: ignore[arg-type]
            for name, size in sizes_gib.items()
        ]
        self.cluster = FakeCluster(
            models,
            [Gpu(f"g{k}", f"n{places[k]}", round(s * GIB)) for k, s in enumerate(gpus_gib)],
            [Node(f"n{n}", host_gib * GIB) for n in sorted(set(places))],
            limits=limits,
            facts=facts or ConfiguredFacts({}, {}, INSTANT, Links(INF, INF, 2, INF)),
            service_s=service_s,
        )
        self.state = self.cluster.state
        self.log: list[tuple[float, Action]] = []
        self.heard: list[Event] = []
        self.policy: Policy | None = None
        self.cluster.listen(self._hear)

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        if self.policy is not None:
            for action in tuple(self.policy.decide(self.state, event)):
                self.log.append((self.cluster.now_s, action))
                self.cluster.start(action)

    def obey(self, policy: Policy) -> World:
        """From now on, `policy` decides."""
        self.policy = policy
        self.cluster.begin(traits(policy).every_s)
        self.cluster.run(0.0)
        return self

    def load(self, *places: str) -> list[str]:
        """Load copies ("model g0 g1"), one after the other; return the instances."""
        for place in places:
            model, *gpus = place.split()
            self.cluster.start(Load(model, tuple(gpus), "test 1"))
            self.cluster.run(100.0)
        ends = [event for event in self.heard if isinstance(event, Done)][-len(places) :]
        assert [end.error for end in ends] == [""] * len(places)
        return [end.instance for end in ends]

    def use(self, *models: str, apart_s: float = 10.0) -> World:
        """One request for each, one after the other, each answered before the next comes."""
        for model in models:
            self.cluster.submit(model)
            self.cluster.run(apart_s)
        return self

    def did(self, kind: type) -> list[str]:
        """Instances (for loads: models) of the policy's actions of this kind."""
        done = [action for _, action in self.log if isinstance(action, kind)]
        return [getattr(action, "instance", "") or action.model for action in done]

    def residents(self) -> list[str]:
        """Models of all instances, in alphabetical order."""
        return sorted(copy.model for copy in self.state.instances.values())


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The class of small worlds."""
    return World
