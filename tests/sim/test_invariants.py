"""What holds on every small cluster, whatever the policy, the engines and the faults."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clusters import Case, cases, engine_of

from modelium.control.costs import ConfiguredFacts, Stages
from modelium.core import Gpu, Model, Node
from modelium.policies.gdsf import Gdsf
from modelium.policies.landlord import Landlord
from modelium.results.record import Run, floats
from modelium.sim import SimInput
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import GIB


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
        assert np.cumsum([change for _, change in changes]).max() <= case.given.nodes[0].host_bytes


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


def check_moves(run: Run) -> int:
    """Without faults: who moves serves until its heir does, and leaves then. Return their number.

    Moves whose copy was evicted in the meantime are only counted out.
    """
    decisions = run.decisions.to_pylist()
    requests = run.requests.select(["arrival_s", "model", "cold"]).to_pylist()
    moved = [d for d in decisions if d["kind"] == "move" and not d["error"]]
    whole = 0
    for move in moved:
        begin_s, end_s, old = move["at_s"], move["end_s"], move["reason"]
        leaves = [d for d in decisions if d["instance"] == old and d["kind"] in ("unload", "sleep")]
        leaves = [d for d in leaves if d["at_s"] >= begin_s and not d["error"]]
        by_itself = leaves and leaves[0]["reason"].startswith("moved to ")
        if np.isnan(end_s) or not leaves or (leaves[0]["at_s"] < end_s and not by_itself):
            continue
        assert by_itself
        assert (leaves[0]["at_s"], leaves[0]["kind"]) == (end_s, "unload")
        mine = [r for r in requests if r["model"] == move["model"]]
        assert {r["cold"] for r in mine if begin_s < r["arrival_s"] < end_s} <= {""}
        whole += 1
    return whole


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
    check_moves(run)


def test_a_busy_model_moves_to_and_fro_and_serves_throughout() -> None:
    """Nothing random: one that is always asked for has 12 moves, and one cold start."""
    n = 160
    asked = Trace(
        np.arange(n) * 0.5, Labels(np.zeros(n, np.int32), ("m0",)),
        np.full(n, 20, np.int32), np.full(n, 30, np.int32),
    )  # fmt: skip
    world = SimInput(
        nodes=[Node("n0")],
        gpus=[Gpu(f"g{k}", "n0", 20 * GIB, "x") for k in range(2)],
        models=[Model("m0", 12 * GIB, family="llm")],
        engines=lambda model, kind: engine_of(model.family),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(default_stages=Stages(0.5, 0.1, 0.2, 0.5, 0.1, 0.1)),
    )
    case = Case(world, asked, "lru, moves", 0)
    run = case.play()
    assert check_moves(run) == 12
    decisions = run.decisions.to_pylist()
    kinds = [d["kind"] for d in decisions if not d["error"]]
    assert (kinds.count("move"), kinds.count("load"), kinds.count("unload")) == (12, 1, 12)
    check_requests(case, run)
    check_memory(run)
    assert set(run.requests["outcome"].to_pylist()) == {"completed"}


@settings(max_examples=40)
@given(case=cases(faulty=False, policies="moves", requests=20))
def test_who_moves_serves_until_its_heir_does(case: Case) -> None:
    run = case.play()
    assert set(run.requests["outcome"].to_pylist()) <= {"completed"}
    check_memory(run)
    check_host_memory(case, run)
    check_moves(run)


@settings(max_examples=20)
@given(case=cases(faulty=True, policies="moves", requests=20))
def test_moves_among_faults_leave_nothing_behind(case: Case) -> None:
    run = case.play()
    check_requests(case, run)
    check_memory(run)
    check_host_memory(case, run)


@settings(max_examples=150)
@given(
    case=cases(faulty=True, exact=True, policies="gdsf", requests=20),
    level=st.sampled_from([0, 1, 2]),
)
def test_landlord_with_full_renewal_does_what_greedy_dual_size_does(case: Case, level: Any) -> None:
    """With sleeps, faults and tensor parallel, too: every action, its time and its end.

    Where only idle copies leave: the lowest of those that may be drained need not be the lowest.
    """
    idle = {"sleep_level": level, "drain_after_s": float("inf")}
    by_clock = case.play(Gdsf(variant="gds", **idle))
    by_rent = case.play(Landlord(**idle))
    done = [run.decisions.drop_columns(["reason"]) for run in (by_clock, by_rent)]
    assert done[0].to_pylist() == done[1].to_pylist()
