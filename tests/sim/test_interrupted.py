"""Loads that are cut short while they wait for room leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import Action, ClusterState, Event, Gpu, Load, Model, Node, Tick, Unload
from modelium.policies.lru import Lru
from modelium.sim import SimInput, simulate
from modelium.sim.spec import FaultAt, Faults, Infer, Settings
from modelium.traces import Trace
from modelium.traces.trace import Labels

INF = float("inf")
LEAVE_S = 4.0
"""How long a process takes to end: as long, the next load waits for its memory."""


class Swap(Lru):
    """LRU that unloads all and loads `second` in one breath when it hears the tick at 20 s."""

    def __init__(self, second: Load) -> None:
        super().__init__()
        self.every_s = 20.0
        self._second: Load | None = second

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        if isinstance(event, Tick) and state.now_s == 20.0 and self._second:
            load, self._second = self._second, None
            return [*(Unload(name, "swapped") for name in state.instances), load]
        return list(super().decide(state, event))


def swapped(lost: str, second: Load, wide: int) -> list[dict[str, Any]]:
    """Lose a GPU for 5 s while a load waits for the memory of what leaves g0: the requests."""
    asked = [(10.0, 0), (60.0, 1), (100.0, 0)]
    ones = np.ones(len(asked), np.int32)
    trace = Trace(
        np.array([at for at, _ in asked]),
        Labels(np.array([model for _, model in asked], np.int32), ("m0", "m1")),
        ones, ones,
    )  # fmt: skip
    given = SimInput(
        [Node("n0", 100)],
        [Gpu(f"g{k}", "n0", 10, "x") for k in range(wide)],
        [Model("m0", 8), Model("m1", 8 * wide, gpus=wide)],
        engines=lambda model, kind: Infer(((1.0,),)),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(
            default_stages=Stages(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, unload_s=LEAVE_S),
            default_links=Links(INF, INF, 2, INF),
        ),
        settings=Settings(
            prepared=False, drain_s=1e3, faults=Faults((FaultAt(22.0, "gpu_lost", lost, 5.0),))
        ),
    )
    run = simulate(given, Swap(second), trace)
    waits = [d for d in run.decisions.to_pylist() if d["at_s"] == 20.0]
    assert [(d["kind"], d["model"]) for d in waits] == [("unload", "m0"), ("load", "m1")]
    assert (waits[1]["end_s"], waits[1]["error"]) == (22.0, f"{lost} was lost")
    return run.requests.to_pylist()


def finish_in_order(requests: list[dict[str, Any]]) -> bool:
    done = [request["finish_s"] for request in requests]
    return all(a < b for a, b in pairwise(done))


def test_room_granted_at_the_instant_of_the_loss_is_given_back() -> None:
    """What leaves is lost with the same GPU: its memory goes to the load, which is lost, too."""
    requests = swapped("g0", Load("m1", ("g0",), "next"), wide=1)
    assert [request["outcome"] for request in requests] == ["completed"] * 3
    assert finish_in_order(requests)


def test_a_lost_load_waits_for_room_no_more() -> None:
    """The other GPU is lost; what leaves g0 still does, and its memory must not go to a ghost."""
    requests = swapped("g1", Load("m1", ("g0", "g1"), "next"), wide=2)
    assert [request["outcome"] for request in requests] == ["completed"] * 3
    assert finish_in_order(requests)
