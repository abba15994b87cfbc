"""The simulated cluster keeps the contract that every cluster must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Gpu,
    Load,
    Miss,
    Model,
    Node,
    Tick,
    Unload,
)  # fmt: skip
from modelium.policies.lru import Lru
from modelium.sim import SimInput, simulate
from modelium.sim.cluster import SimCluster
from modelium.sim.data_plane import Plane
from modelium.sim.kernel.arrays import COMPLETED, NEXT
from modelium.sim.kernel.heap import NEVER
from modelium.sim.spec import FaultAt, Faults, Generate, Infer, Settings, StepTime
from modelium.testing import check_cluster
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import GIB, ps

STEP = StepTime(0.01, 0.0, 0.0, 1, 0.0, 0.02, 1e-5, 1e-5, 1)
MOST = 64


class Played:
    """A simulated cluster whose users are the test: requests arrive when it says so."""

    def __init__(self, models: Sequence[Model], gpus: Sequence[Gpu], nodes: Sequence[Node]) -> None:
        self._names = [model.name for model in models]
        ones = np.ones(MOST, np.int32)
        trace = Trace(np.zeros(MOST), Labels(0 * ones, tuple(self._names)), 100 * ones, 10 * ones)
        given = SimInput(
            list(nodes), list(gpus), list(models),
            engines=lambda model, kind: Generate(STEP, 100_000),
            work=lambda model, kind, prompt, output: 0.1,
            settings=Settings(prepared=False),
        )  # fmt: skip
        self._plane = Plane(given, trace)
        self._plane.w.arrival_ps[:] = NEVER
        self._cluster = SimCluster(given, self._plane, seed=0)

    @property
    def state(self) -> ClusterState:
        return self._cluster.state

    @property
    def finished(self) -> int:
        return int((self._plane.w.outcome == COMPLETED).sum())

    def start(self, action: Action) -> None:
        self._cluster.start(action)

    def listen(self, hear: Callable[[Event], None]) -> None:
        self._cluster.listen(hear)

    def submit(self, model: str) -> None:
        w = self._plane.w
        r = int(w.at[NEXT])
        w.requests.model[r] = self._names.index(model)
        w.arrival_ps[r] = int(self._cluster.env.now)
        w.arrival_s[r] = self._cluster.state.now_s
        self.run(0.0)

    def run(self, seconds: float) -> None:
        self._cluster.play(int(self._cluster.env.now) + ps(seconds) + 1, on=True)


def test_the_simulated_cluster_keeps_the_contract() -> None:
    check_cluster(Played)


def _trace(arrivals: Sequence[float], models: Sequence[int]) -> Trace:
    ones = np.ones(len(arrivals), np.int32)
    names = tuple(f"m{k}" for k in range(max(models) + 1))
    return Trace(
        np.array(arrivals, float), Labels(np.array(models, np.int32), names), 100 * ones, 10 * ones
    )


def _given(n_models: int, n_gpus: int, **settings: object) -> SimInput:
    return SimInput(
        [Node("n0", 512 * GIB)],
        [Gpu(f"g{k}", "n0", 60 * GIB, "k") for k in range(n_gpus)],
        [Model(f"m{k}", 40 * GIB) for k in range(n_models)],
        engines=lambda model, kind: Generate(STEP, 100_000),
        work=lambda model, kind, prompt, output: 0.1,
        settings=Settings(prepared=False, **settings),  # type: ignore[arg-type]
    )


def test_a_lost_gpu_loses_no_request() -> None:
    trace = _trace(np.arange(0.0, 400.0, 0.05), [k % 2 for k in range(8000)])
    faults = Faults((FaultAt(100.0, "gpu_lost", "g0", for_s=50.0), FaultAt(250.0, "crash", "m1")))
    run = simulate(_given(2, 2, faults=faults), Lru(), trace)
    outcome = run.requests["outcome"].to_pylist()
    assert outcome.count("completed") == 8000
    assert sum(run.requests["retries"].to_pylist()) > 0


def test_requests_on_a_lost_instance_fail_without_retries() -> None:
    trace = _trace(np.arange(0.0, 100.0, 0.02), [0] * 5000)
    faults = Faults((FaultAt(60.0, "crash", "m0"),), retries=0)
    run = simulate(_given(1, 1, faults=faults), Lru(), trace)
    counts = run.summary["requests"]
    assert counts["failed"] > 0
    assert counts["failed"] + counts["completed"] == 5000


def test_failing_loads_are_tried_again_until_they_succeed() -> None:
    faults = Faults((FaultAt(0.0, "load_fails", "m0", for_s=60.0),))
    run = simulate(_given(1, 1, faults=faults), Lru(), _trace([1.0], [0]))
    errors = [e for e in run.decisions["error"].to_pylist() if e]
    assert errors
    assert run.summary["requests"]["completed"] == 1


def test_concurrent_loads_share_the_disk() -> None:
    alone = simulate(_given(1, 1), Lru(), _trace([0.0], [0]))
    both = simulate(_given(2, 2), Lru(), _trace([0.0, 0.0], [0, 1]))

    def weights_s(run: object) -> float:
        import json

        stages = run.decisions["stages"].to_pylist()  # type: ignore[attr-defined]
        return float(json.loads(stages[0])["weights"])

    # One loader reads 5 GB/s; two would read 10 GB/s, but the disk gives 6.
    assert np.isclose(weights_s(alone), 40 * GIB / 5e9)
    assert np.isclose(weights_s(both), 2 * 40 * GIB / 6e9)


class Slow(Lru):
    """LRU that thinks for a moment; the clock of the machine is what is charged."""

    def decide(self, state: ClusterState, event: Event) -> list[Action]:
        sum(range(2_000_000))
        return list(super().decide(state, event))


def test_the_time_that_decide_takes_can_be_charged() -> None:
    trace = _trace([1.0], [0])
    free = simulate(_given(1, 1), Slow(), trace)
    charged = simulate(_given(1, 1, charge_decide=True), Slow(), trace)
    assert free.decisions["at_s"].to_pylist()[0] == 1.0
    assert charged.decisions["at_s"].to_pylist()[0] > 1.001


def test_two_busy_engines_on_one_gpu_each_run_at_half_speed() -> None:
    def last_s(models: Sequence[int]) -> float:
        given = SimInput(
            [Node("n0")], [Gpu("g0", "n0", 60 * GIB, "k")], [Model("m0", GIB), Model("m1", GIB)],
            engines=lambda model, kind: Infer(((1.0,),), exclusive=False),
            work=lambda model, kind, prompt, output: 1.0,
        )  # fmt: skip
        trace = _trace([10.0] * len(models), models)
        run = simulate(given, Both(), trace)
        return float(np.nanmax(run.requests["finish_s"].to_numpy()))

    assert last_s([0]) == 11.0
    assert last_s([0, 1]) == 12.0  # the second starts while the first is at work


class Both:
    """Loads both models at the start."""

    def decide(self, state: ClusterState, event: Event) -> list[Action]:
        if isinstance(event, Tick) and not state.instances:
            return [Load(name, ("g0",), "given, step 1") for name in state.models]
        return []


class Stubborn:
    """Asks for the impossible again and again."""

    def decide(self, state: ClusterState, event: Event) -> list[Action]:
        if isinstance(event, Miss | Done):
            return [Unload("nobody", "try 1")]
        return []


def test_a_policy_that_makes_no_progress_is_told_so() -> None:
    import pytest

    from modelium.errors import PolicyError

    with pytest.raises(PolicyError, match="makes no progress"):
        simulate(_given(1, 1), Stubborn(), _trace([1.0], [0]))


def test_a_run_leaves_nothing_behind_for_the_next_of_the_same_input() -> None:
    given, asked = _given(1, 1), _trace([1.0], [0])
    first, second = (simulate(given, Lru(), asked) for _ in range(2))
    assert first.decisions.equals(second.decisions)
    assert first.requests.equals(second.requests)
