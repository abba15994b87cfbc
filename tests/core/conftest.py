"""States to ask rules and costs about."""

from __future__ import annotations

from typing import Any

import pytest

from modelium.control.costs import ConfiguredFacts, Links, StagedCosts, Stages
from modelium.control.state import Copy, FrozenDemand, FrozenMeters, State
from modelium.core import Gpu, Model, Node, Phase
from modelium.units import GIB

STAGES = Stages(6.0, 0.5, 8.0, 25.0, 2.0, 4.0, (0.1, 0.3), (0.2, 0.4), 1.0)
LINKS = Links(2 * GIB, 20 * GIB, 2, 4 * GIB)


class Books:
    """Two nodes with two GPUs of 80 GiB each, and models by keyword: `a=30` or `a=Model(...)`."""

    def __init__(self, **models: int | Model) -> None:
        listed = {
            name: m if isinstance(m, Model) else Model(name, m * GIB, asleep_bytes=GIB)
            for name, m in models.items()
        }
        self.now_s = 0.0
        self.hungry: list[str] = []
        self.facts = ConfiguredFacts(default_stages=STAGES, default_links=LINKS)
        self.state = State(
            listed,
            {name: Node(name, 100 * GIB) for name in ("n0", "n1")},
            {f"{n}g{k}": Gpu(f"{n}g{k}", n, 80 * GIB, "x") for n in ("n0", "n1") for k in (0, 1)},
            {name: FrozenDemand(arrivals=3) for name in listed},
            lambda: self.now_s,
            lambda: self.hungry,
        )
        work = lambda model, kind, prompt, output: prompt + 10 * output  # noqa: E731
        self.state.costs = StagedCosts(self.state, self.facts, work)
        self.count = 0

    def add(self, model: str, gpus: str, phase: Phase = Phase.READY, **more: Any) -> Copy:
        """Enter a copy on these GPUs (joined by a blank)."""
        self.count += 1
        spec = self.state.models[model]
        held = spec.asleep_bytes if phase is Phase.ASLEEP else spec.bytes_per_gpu()
        names = tuple(gpus.split())
        given = {"bytes_per_gpu": held, "ready_since_s": 0.0, **more}
        meters = FrozenMeters(given.pop("running", 0), given.pop("waiting", 0))
        copy = Copy(f"{model}#{self.count}", model, names, names[0][:2], meters, phase, **given)
        self.state.add(copy)
        return copy


@pytest.fixture(scope="session")
def books() -> type[Books]:
    """The class of small books."""
    return Books
