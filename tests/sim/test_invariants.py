"""What holds on every small cluster, whatever the policy, the engines and the faults."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.core import Gpu, Limits, Model, Node, Policy
from modelium.costs import ConfiguredFacts, Stages
from modelium.policies.gdsf import Gdsf
from modelium.policies.idle_ttl import IdleTtl
from modelium.policies.landlord import Landlord
from modelium.policies.lfuda import Lfuda
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.record import Run, floats
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
HOST_BYTES = 24 * GIB
POLICIES = {
    "lru": Lru,
    "lru, sleep 1": lambda: Lru(sleep_level=1),
    "lru, sleep 2": lambda: Lru(sleep_level=2),
    "lru, drains and scales": lambda: Lru(drain_after_s=2.0, max_replicas=2, scale_waiting=2),
    "gdsf": Gdsf,
    "landlord, sleep 1": lambda: Landlord(sleep_level=1),
    "lfuda": Lfuda,
    "random": RandomEvict,
    "idle_ttl": lambda: IdleTtl(idle_s=3.0, qps_min=float("inf")),
    "idle_ttl, two tiers": lambda: IdleTtl(idle_s=8.0, sleep_s=1.0, qps_min=float("inf")),
}


@dataclass(frozen=True)
class Case:
    """A small cluster, what is asked of it, and who decides."""

    given: SimInput
    trace: Trace
    policy: str
    seed: int

    def play(self) -> Run:
        policy: Policy = POLICIES[self.policy]()
        facts = ConfiguredFacts(default_stages=self.given.facts.default_stages)
        fresh = SimInput(**{**vars(self.given), "facts": facts})
        return simulate(fresh, policy, self.trace, seed=self.seed)


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
def cases(draw: st.DrawFn, *, faulty: bool) -> Case:
    """A random case."""
    gpus, nodes = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    per_node = [sum(k % nodes == n for k in range(gpus)) for n in range(nodes)]
    models = draw(model_lists(2 if max(per_node) > 1 else 1))
    n = draw(st.integers(1, 40))
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
    world = SimInput(
        nodes=[Node(f"n{k}", HOST_BYTES) for k in range(nodes)],
        gpus=[Gpu(f"g{k}", f"n{k % nodes}", 20 * GIB, "x") for k in range(gpus)],
        models=models,
        engines=lambda model, kind: engine_of(model.family),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(default_stages=Stages(0.5, 0.1, 0.2, 0.5, 0.1, 0.1)),
        settings=setting,
    )
    return Case(world, trace, draw(st.sampled_from(sorted(POLICIES))), draw(st.integers(0, 9)))


def held_over_time(rows: list[dict[str, Any]], place: str) -> dict[str, list[tuple[float, float]]]:
    """Changes of bytes by place, in order of time; at one instant, what is given back first."""
    changes = defaultdict(list)
    for row in rows:
        changes[row[place]] += [(row["start_s"], row["value"]), (row["end_s"], -row["value"])]
    return {name: sorted(each) for name, each in changes.items()}


def check_memory(run: Run) -> None:
    """No GPU ever holds more than it has."""
    kinds = {"loading", "weights", "kv", "overhead", "asleep", "leaving"}
    rows = [row for row in run.timeline.to_pylist() if row["kind"] in kinds]
    for changes in held_over_time(rows, "gpu").values():
        assert np.cumsum([change for _, change in changes]).max() <= 20 * GIB


def check_host_memory(case: Case, run: Run) -> None:
    """Nor a node's RAM: the weights of what sleeps at level 1 there fit."""
    level_1 = "sleep 1" in case.policy or "two tiers" in case.policy
    node_of = {gpu.id: gpu.node for gpu in case.given.gpus}
    size = {model.name: model.weights_bytes for model in case.given.models}
    asleep = [row for row in run.timeline.to_pylist() if row["kind"] == "asleep" and level_1]
    once = {(row["instance"], row["start_s"]): row for row in asleep}.values()
    rows = [{**row, "gpu": node_of[row["gpu"]], "value": size[row["model"]]} for row in once]
    for changes in held_over_time(rows, "gpu").values():
        assert np.cumsum([change for _, change in changes]).max() <= HOST_BYTES


def check_requests(case: Case, run: Run) -> None:
    """Each request ends once, in order of time, and its parts add up."""
    ends = run.summary["requests"]
    outcomes = run.requests["outcome"].to_pylist()
    assert len(outcomes) == len(case.trace) == ends["arrived"]
    for outcome in ("completed", "rejected", "failed", "unfinished"):
        assert outcomes.count(outcome) == ends[outcome]
    done = np.array(outcomes) == "completed"
    arrival, first, finish = (
        floats(run.requests, c)[done] for c in ("arrival_s", "first_token_s", "finish_s")
    )
    assert (arrival <= first + 1e-9).all()
    assert (first <= finish).all()
    assert np.isnan(floats(run.requests, "finish_s")[~done]).all()
    begun = run.decisions["at_s"].to_numpy()
    ended = run.decisions["end_s"].to_numpy()
    assert (np.diff(begun) >= 0).all()
    assert not (ended < begun).any()


def content(run: Run) -> bytes:
    """All tables of a run as bytes."""
    out = io.BytesIO()
    for table in (run.requests, run.decisions, run.timeline):
        pq.write_table(table, out)
    return out.getvalue()


@settings(max_examples=30)
@given(case=cases(faulty=True))
def test_requests_memory_and_clock_add_up_even_with_faults(case: Case) -> None:
    run = case.play()
    check_requests(case, run)
    check_memory(run)
    check_host_memory(case, run)


@settings(max_examples=12)
@given(case=cases(faulty=True))
def test_same_seed_same_bytes(case: Case) -> None:
    assert content(case.play()) == content(case.play())


@settings(max_examples=30)
@given(case=cases(faulty=False))
def test_no_request_waits_for_ever(case: Case) -> None:
    run = case.play()
    assert set(run.requests["outcome"].to_pylist()) <= {"completed"}
    check_requests(case, run)
    check_memory(run)
    check_host_memory(case, run)
