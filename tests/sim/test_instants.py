"""What happens at one instant: a loss and a last step, a move's end and its unload."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Gpu,
    Load,
    Miss,
    Model,
    Move,
    Node,
    Policy,
    Sleep,
    Tick,
    Unload,
)  # fmt: skip
from modelium.results.record import Run
from modelium.sim import SimInput, simulate
from modelium.sim.spec import FaultAt, Faults, Infer, Settings
from modelium.traces import Trace
from modelium.traces.trace import Labels


class Scripted:
    """Loads what is missed on g0; does `then` at the tick at 40 s, and answers `Done` as told."""

    every_s = 20.0

    def __init__(self, then: Action | None = None, after: Action | None = None) -> None:
        self._then, self._after = then, after
        self.heard: list[str] = []

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        match event:
            case Miss(model):
                return [Load(model, ("g0",))]
            case Tick() if state.now_s == 40.0 and self._then:
                return [self._then]
            case Done(action, error):
                self.heard.append(f"{type(action).__name__}{error and ': ' + error}")
                if isinstance(action, Unload) and self._after:
                    return [self._after]
        return []


def played(policy: Policy, stages: Stages, lost: FaultAt) -> Run:
    """One model, asked for at 10 and 60 s; an answer takes a second, moving its weights another."""
    asked = np.array([10.0, 60.0])
    ones, codes = np.ones(len(asked), np.int32), np.zeros(len(asked), np.int32)
    given = SimInput(
        [Node("n0", 100)],
        [Gpu("g0", "n0", 10, "x"), Gpu("g1", "n0", 10, "x")],
        [Model("m0", 8)],
        engines=lambda model, kind: Infer(((1.0,),)),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(default_stages=stages, default_links=Links(8.0, 8.0, 2, 8.0)),
        settings=Settings(prepared=False, drain_s=1e3, faults=Faults((lost,))),
    )
    return simulate(given, policy, Trace(asked, Labels(codes, ("m0",)), ones, ones))


def decisions(run: Run) -> list[dict[str, Any]]:
    return run.decisions.to_pylist()


def test_a_load_whose_last_step_is_due_when_its_gpu_is_lost_is_lost() -> None:
    stages = Stages(5.0, 0.0, 4.0, 4.0, 0.0, 0.0, unload_s=4.0)
    run = played(Scripted(), stages, FaultAt(20.0, "gpu_lost", "g0", 10.0))
    first = decisions(run)[0]
    assert (first["at_s"], first["end_s"], first["error"]) == (10.0, 20.0, "g0 was lost")
    assert run.summary["requests"]["completed"] == 2


def test_a_copy_that_falls_asleep_when_its_gpu_is_lost_is_lost() -> None:
    stages = Stages(5.0, 0.0, 0.0, 0.0, 0.0, 0.0, sleep_s=(3.0, 3.0), unload_s=0.0)
    policy = Scripted(Sleep("m0#1", 2))
    run = played(policy, stages, FaultAt(43.0, "gpu_lost", "g0", 10.0))
    assert [d["error"] for d in decisions(run) if d["kind"] == "sleep"] == ["g0 was lost"]
    assert run.summary["requests"]["completed"] == 2


def test_the_unload_of_a_move_ends_after_the_move_even_if_it_takes_no_time() -> None:
    stages = Stages(5.0, 0.0, 0.0, 0.0, 0.0, 0.0, sleep_s=(3.0, 3.0), unload_s=0.0)
    policy = Scripted(Move("m0#1", ("g1",)), after=Sleep("m0#2", 1))
    run = played(policy, stages, FaultAt(47.0, "gpu_lost", "g1", 5.0))
    assert policy.heard[:4] == ["Load", "Move", "Unload", "Sleep: g1 was lost"]
    assert run.summary["requests"]["completed"] == 2
