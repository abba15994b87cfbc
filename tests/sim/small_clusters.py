"""Random small clusters, with all that may happen on them, as hypothesis draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import strategies as st

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.control.state import State
from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Gpu,
    Limits,
    Model,
    Move,
    Node,
    Policy,
    Tick,
    traits,
)  # fmt: skip
from modelium.policies.gdsf import Gdsf
from modelium.policies.idle_ttl import IdleTtl
from modelium.policies.landlord import Landlord
from modelium.policies.lfuda import Lfuda
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.policies.toolkit.eviction import Survey
from modelium.policies.toolkit.placement import by_node
from modelium.results.record import Run
from modelium.sim import SimInput, simulate
from modelium.sim.spec import (
    Admission,
    Engine,
    FaultAt,
    Faults,
    Generate,
    Infer,
    Settings,
    StepTime,
)  # fmt: skip
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import GIB

STEP = StepTime(5e-3, 1e-3, 2e-3, 3, 1e-6, 6e-3, 1e-4, 2e-4, 30, 1e-4, 1e-4, 1e-6, 1e-8, 1e-8)
INF = float("inf")


class Restless(Lru):
    """LRU that also moves ready copies, busy or not, to other GPUs with room, 12 times in all.

    As often as it can, so that moves meet loads, sleeps and faults; then it leaves GPUs in peace,
    so that what waits is served in the end.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.every_s = 0.7
        self._left = 12
        self._moving: set[str] = set()

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        yield from super().decide(state, event)
        if isinstance(event, Tick) and self._left and (move := next(self._moves(state), None)):
            self._left -= 1
            self._moving.add(move.instance)
            yield move
        if isinstance(event, Done) and isinstance(event.action, Move) and event.error:
            self._moving.discard(event.action.instance)

    def _moves(self, state: ClusterState) -> Iterator[Move]:
        survey = Survey(state)
        still = [copy for copy in survey.ready if copy.id not in self._moving]
        for copy in sorted(still, key=lambda copy: copy.ready_since_s):
            need = state.models[copy.model].bytes_per_gpu()
            wide = [gpu for gpu, room in survey.rooms.items() if room >= need]
            for gpus in by_node(state, wide).values():
                for group in combinations(gpus, len(copy.gpus)):
                    if set(group) != set(copy.gpus):
                        yield Move(copy.id, group, copy.id)


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": Lru,
    "lru, sleep 1": lambda: Lru(sleep_level=1),
    "lru, sleep 2": lambda: Lru(sleep_level=2),
    "lru, moves": Restless,
    "lru, moves, sleep 1": lambda: Restless(sleep_level=1),
    "lru, drains and scales": lambda: Lru(drain_after_s=2.0, max_replicas=2, scale_waiting=2),
    "gdsf": Gdsf,
    "landlord, sleep 1": lambda: Landlord(sleep_level=1),
    "lfuda": Lfuda,
    "random": RandomEvict,
    "idle_ttl": lambda: IdleTtl(idle_s=3.0, qps_min=INF),
    "idle_ttl, two tiers": lambda: IdleTtl(idle_s=8.0, sleep_s=1.0, qps_min=INF),
}


class Watched:
    """Lets a policy decide, and looks at the nodes' RAM each time that it is asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.every_s: float | None = traits(policy).every_s

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        check_host_cache(state)
        return self._policy.decide(state, event)


def check_host_cache(state: ClusterState) -> None:
    """What is cached and what sleeps fit together, and the books are the sums of their entries."""
    assert isinstance(state, State)
    for name, ram in state.ram.items():
        cached = sum(m.weights_bytes for m in state.models.values() if m.name in ram)
        copies = [state.copy(instance) for instance in state.instances]
        asleep = sum(copy.host_bytes for copy in copies if copy.node == name)
        assert (ram.cached_bytes, ram.pinned_bytes) == (cached, asleep)
        assert cached + asleep <= state.nodes[name].host_bytes


@dataclass(frozen=True)
class Case:
    """A small cluster, what is asked of it, and who decides."""

    given: SimInput
    trace: Trace
    policy: str
    seed: int

    def play(self, policy: Policy | None = None) -> Run:
        known = self.given.facts
        facts = ConfiguredFacts(
            known.by_model, default_stages=known.default_stages, default_links=known.default_links
        )
        fresh = SimInput(**{**vars(self.given), "facts": facts})
        decider = Watched(policy or POLICIES[self.policy]())
        return simulate(fresh, decider, self.trace, seed=self.seed)


def engine_of(kind: str) -> Engine:
    """A language model, or one that answers in one piece: in batches, in turns, sharing time."""
    if kind == "llm":
        return Generate(STEP, 400, max_num_seqs=3, max_batched_tokens=40)
    if kind == "batches":
        return Infer(((0.05, 0.08, 0.1),), per_token_s=1e-4, max_delay_s=0.02)
    return Infer(((0.1,),), fixed_s=0.01, exclusive=kind == "turns")


@st.composite
def model_lists(draw: st.DrawFn, most_gpus: int) -> list[Model]:
    """Two to six models, of up to half a GPU or more; some on two GPUs."""
    models = []
    for k in range(draw(st.integers(2, 6))):
        size = draw(st.integers(1, 14))
        kind = draw(st.sampled_from(["llm", "llm", "batches", "turns", "shares"]))
        models.append(
            Model(
                f"m{k}", size * GIB, kv_bytes=2 * GIB * (kind == "llm"), overhead_bytes=GIB,
                asleep_bytes=draw(st.sampled_from([0, GIB])), family=kind,
                gpus=draw(st.sampled_from([1, 1, 1, most_gpus])),
            )
        )  # fmt: skip
    return models


@st.composite
def exact_models(draw: st.DrawFn, most_gpus: int) -> tuple[list[Model], ConfiguredFacts]:
    """Models whose costs over their sizes are exact in binary, so that ties are ties.

    One copy of each at a time: with several, a hit is of all of them or of one, by the policy.
    """
    models, stages = [], {}
    for k in range(draw(st.integers(3, 6))):
        gpus = draw(st.sampled_from([1, most_gpus]))
        size = gpus * draw(st.sampled_from([2, 4, 8, 16])) * GIB
        kind = draw(st.sampled_from(["llm", "batches", "turns", "shares"]))
        asleep = draw(st.sampled_from([0, GIB]))
        models.append(
            Model(f"m{k}", size, asleep_bytes=asleep, family=kind, gpus=gpus, max_replicas=1)
        )
        cost_s = draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]))
        stages[f"m{k}"] = Stages(cost_s, 0.0, 0.0, 0.0, 0.0, 0.0)
    return models, ConfiguredFacts(stages, default_links=Links(INF, INF, 2, INF))


@st.composite
def fault_plans(draw: st.DrawFn, gpus: int, models: int) -> Faults:
    """Some GPUs and instances are lost, some loads fail or are slow."""
    targets = [("gpu_lost", f"g{k}") for k in range(gpus)] + [("node_lost", "n0")]
    for k in range(models):
        targets += [("crash", f"m{k}"), ("load_fails", f"m{k}"), ("load_slow", f"m{k}")]
    chosen = draw(st.lists(st.tuples(st.floats(0, 60), st.sampled_from(targets)), max_size=5))
    schedule = tuple(
        FaultAt(at_s, kind, target, for_s=10.0, factor=3.0) for at_s, (kind, target) in chosen
    )
    failure = draw(st.sampled_from([0.0, 0.3]))
    return Faults(
        schedule, load_failure=failure, slow_load=failure, retries=draw(st.integers(0, 2))
    )


@st.composite
def cases(
    draw: st.DrawFn, *, faulty: bool, exact: bool = False, policies: str = "", requests: int = 1
) -> Case:
    """A random case, of the policies with `policies` in their name, of `requests` at least."""
    gpus, nodes = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    per_node = [sum(k % nodes == n for k in range(gpus)) for n in range(nodes)]
    facts = ConfiguredFacts(default_stages=Stages(0.5, 0.1, 0.2, 0.5, 0.1, 0.1))
    most_gpus = 2 if max(per_node) > 1 else 1
    if exact:
        models, facts = draw(exact_models(most_gpus))
    else:
        models = draw(model_lists(most_gpus))
    n = draw(st.integers(requests, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    arrivals = np.sort(rng.uniform(0, draw(st.sampled_from([1.0, 20.0, 80.0])), n))
    trace = Trace(
        arrivals,
        Labels(rng.integers(0, len(models), n).astype(np.int32), tuple(m.name for m in models)),
        rng.integers(1, 150, n).astype(np.int32),
        rng.integers(1, 100, n).astype(np.int32),
    )
    limit = draw(st.sampled_from([1, 1, 2]))
    admission = Admission(draw(st.sampled_from([2, 10**9])) if faulty else 10**9)
    setting = Settings(
        router=draw(st.sampled_from(["least_outstanding", "round_robin", "shortest_queue"])),
        admission=admission,
        faults=draw(fault_plans(gpus, len(models))) if faulty else Faults(),
        limits=Limits(loads_at_once_per_gpu=limit, loads_at_once=draw(st.integers(1, 4))),
        drain_s=1e4,
        bins=20,
    )
    host_bytes = draw(st.sampled_from([0, 9, 24])) * GIB
    world = SimInput(
        nodes=[Node(f"n{k}", host_bytes) for k in range(nodes)],
        gpus=[Gpu(f"g{k}", f"n{k % nodes}", 20 * GIB, "x") for k in range(gpus)],
        models=models,
        engines=lambda model, kind: engine_of(model.family),
        work=lambda model, kind, prompt, output: 0.1,
        facts=facts,
        settings=setting,
    )
    names = sorted(name for name in POLICIES if policies in name)
    return Case(world, trace, draw(st.sampled_from(names)), draw(st.integers(0, 9)))
