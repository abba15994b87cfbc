"""No run exceeds its bound, whatever the policy; where all can be tried, the bound is not far."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clusters import POLICIES, Case, cases

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import Gpu, Limits, Model, Node, Policy, Slo
from modelium.policies.belady_cost import BeladyCost
from modelium.policies.static import Static
from modelium.results.record import Run
from modelium.sim import SimInput, simulate
from modelium.sim.bounds.bounds import _counted, _large_or_small, _least, _lost, _Needs, bounds
from modelium.sim.bounds.fastest import fastest, load_s, return_s
from modelium.sim.spec import Generate, Infer, Settings, StepTime
from modelium.traces import Trace
from modelium.traces.trace import Labels

SLOS = st.builds(
    Slo,
    ttft_s=st.sampled_from([0.05, 0.15, 0.5, 2.0, float("inf")]),
    tpot_s=st.sampled_from([0.004, 0.02, float("inf")]),
    e2e_s=st.sampled_from([0.3, 2.0, float("inf")]),
)


def play(case: Case, policy: Policy) -> Run:
    """Nothing is compiled at first; so each run begins with its own facts."""
    facts = ConfiguredFacts(default_stages=case.given.facts.default_stages)
    return simulate(replace(case.given, facts=facts), policy, case.trace, seed=case.seed)


@pytest.mark.parametrize("faulty", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_run_exceeds_its_bound(faulty: bool, data: st.DataObject) -> None:
    case = data.draw(cases(faulty=faulty))
    models = [replace(m, slo=data.draw(SLOS)) for m in case.given.models]
    case = Case(replace(case.given, models=models), case.trace, case.policy, case.seed)
    limits, n = bounds(case.given, case.trace), len(case.trace)
    future = {
        name: case.trace.arrival_s[case.trace.model.codes == k].tolist()
        for k, name in enumerate(case.trace.model.names)
    }
    awake = Static({m.name: [("g0",)] for m in models if m.gpus == 1})
    for policy in (POLICIES[case.policy](), BeladyCost(future), awake):
        run = play(case, policy).summary
        assert run["slo_attainment"] <= limits["slo_attainment"]
        assert run["goodput_per_s"] <= limits["goodput_per_s"]
        if not run["sleeps"]:
            assert round(run["slo_attainment"] * n) <= round(limits["without_sleep"] * n)


def held(run: Run) -> dict[str, list[tuple[float, float]]]:
    """From when to when each copy held its memory without a break, by model."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    last: dict[tuple[str, str], tuple[float, float]] = {}
    for row in run.timeline.to_pylist():
        if row["kind"] not in ("loading", "weights", "leaving"):
            continue
        place = row["gpu"], row["instance"]
        begin_s, end_s = last.get(place, (0.0, -1.0))
        last[place] = (begin_s if end_s == row["start_s"] else row["start_s"], row["end_s"])
        spans[row["model"]].append(last[place])
    return spans


@pytest.mark.parametrize("faulty", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whoever_is_in_time_had_a_copy_that_was_held_as_long_as_is_claimed(
    faulty: bool, data: st.DataObject
) -> None:
    case = data.draw(cases(faulty=faulty))
    slo = Slo(ttft_s=data.draw(st.sampled_from([0.12, 0.5, 2.0])))
    models = [replace(m, slo=slo) for m in case.given.models]
    world, asked = replace(case.given, models=models), case.trace
    run = play(Case(world, asked, case.policy, case.seed), POLICIES[case.policy]())
    least, spans = _least(world, asked), held(run)
    back = return_s if run.summary["sleeps"] else load_s
    for r in np.flatnonzero(run.requests["slo_met"].to_numpy(zero_copy_only=False)):
        model = models[asked.model.codes[r]]
        assert least.patience_s[r] >= 0
        begin_s = asked.arrival_s[r] + least.patience_s[r] - back(world, model) + 2e-6
        end_s = asked.arrival_s[r] + least.service_s[r] - 1e-6
        begin_s = max(begin_s, 0.0)
        if begin_s < end_s:
            assert any(a <= begin_s and end_s <= b for a, b in spans[model.name])


@st.composite
def wants(draw: st.DrawFn) -> _Needs:
    """Up to seven intervals of up to four models; memory is one."""
    rng, n = np.random.default_rng(draw(st.integers(0, 10_000))), draw(st.integers(1, 7))
    begin = rng.integers(0, 12, n).astype(float)
    end = begin + rng.integers(1, 8, n)
    return _Needs(begin, end, rng.integers(0, 4, n), rng.uniform(0.2, 1.0, (1, 4)))


def most_in_time(needs: _Needs) -> int:
    """The largest set whose models fit together at all times, by trying all sets."""
    n, moments = len(needs.end_s), np.arange(0.5, 20)
    for size in range(n, 0, -1):
        for chosen in combinations(range(n), size):
            held = [
                {needs.model[i] for i in chosen if needs.begin_s[i] < t < needs.end_s[i]}
                for t in moments
            ]
            if all(sum(needs.share[0, m] for m in at) <= 1 + 1e-9 for at in held):
                return size
    return 0


@settings(max_examples=150, deadline=None)
@given(wants())
def test_the_programme_is_never_below_brute_force_and_near_it(needs: _Needs) -> None:
    most, bound = most_in_time(needs), len(needs.end_s) - _lost(needs)
    assert most <= bound <= most + 2


def test_the_programme_is_exact_where_only_one_model_fits() -> None:
    """Then intervals of two models form a bipartite graph, whose programme is integral.

    By bytes alone, parts of both would fit: it takes the measure in which each is a whole GPU.
    """
    rng = np.random.default_rng(3)
    for _ in range(60):
        begin = rng.integers(0, 12, 8).astype(float)
        needs = _Needs(
            begin, begin + 4.0, rng.integers(0, 2, 8), np.array([[0.8, 0.7], [1.0, 1.0]])
        )
        assert len(needs.end_s) - _lost(needs) == most_in_time(needs)


def turns(slo: Slo, wake_s: float) -> tuple[SimInput, Trace]:
    """Two models that do not fit together, asked in turn: a, b, a, every second."""
    stages = Stages(10.0, 0.0, 0.0, 0.0, 0.0, 0.0, (wake_s, wake_s), (0.0, 0.0), 0.0)
    world = SimInput(
        nodes=[Node("n0", 1 << 10)],
        gpus=[Gpu("g0", "n0", 80)],
        models=[Model(name, 60, slo=slo) for name in "ab"],
        engines=lambda model, kind: Infer(((0.1,),)),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(default_stages=stages, default_links=Links(1e12, 1e12, 2, 1e12)),
        settings=Settings(limits=Limits()),
    )
    ones = np.ones(3, np.int32)
    codes = np.array([0, 1, 0], np.int32)
    return world, Trace(np.array([1.0, 2.0, 3.0]), Labels(codes, ("a", "b")), ones, ones)


def test_two_of_three_is_all_that_can_be_where_loads_take_longer_than_patience() -> None:
    world, asked = turns(Slo(ttft_s=1.0), wake_s=10.0)
    limits = bounds(world, asked)
    assert limits == pytest.approx(
        {"slo_attainment": 2 / 3, "goodput_per_s": 2 / 3, "alone": 1.0, "without_sleep": 2 / 3}
    )
    best = simulate(world, Static({"a": [("g0",)]}), asked).summary
    assert best["slo_attainment"] == limits["slo_attainment"]


def test_a_quick_wake_is_allowed_for_except_in_the_bound_without_sleep() -> None:
    limits = bounds(*turns(Slo(ttft_s=1.0), wake_s=0.1))
    assert (limits["slo_attainment"], limits["without_sleep"]) == (1.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(("limit_s", "share"), [(0.0999, 0.0), (0.1001, 1.0)])
def test_who_is_too_slow_alone_is_never_in_time(limit_s: float, share: float) -> None:
    assert bounds(*turns(Slo(ttft_s=limit_s), wake_s=0.0))["alone"] == share
    assert bounds(*turns(Slo(e2e_s=limit_s), wake_s=0.0))["alone"] == share


def test_an_empty_trace_has_no_bounds() -> None:
    world, asked = turns(Slo(), 0.0)
    assert bounds(world, asked.take(np.arange(0))) == {}


STEPS = st.builds(
    StepTime,
    *(st.floats(0, 1e-2), st.floats(0, 1e-3), st.floats(0, 1e-3), st.integers(1, 40)),
    st.floats(0, 1e-6), st.floats(0, 1e-2), st.floats(0, 1e-3), st.floats(0, 1e-3),
    st.integers(1, 60), *(st.floats(0, 1e-4),) * 2, st.floats(0, 1e-6), *(st.floats(0, 1e-8),) * 2,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 300), st.integers(1, 40), st.integers(1, 6))
def test_no_request_is_faster_than_the_fastest(
    step: StepTime, prompt: int, output: int, crowd: int
) -> None:
    """Alone or with others that arrive at the same time, prefill in chunks of 64 tokens."""
    engine = Generate(step, 4000, max_num_seqs=4, max_batched_tokens=64)
    world, _ = turns(Slo(), 0.0)
    world = replace(world, engines=lambda model, kind: engine)
    lengths = np.full(crowd, prompt, np.int32), np.full(crowd, output, np.int32)
    asked = Trace(np.zeros(crowd), Labels.constant("a", crowd), *lengths)
    run = simulate(world, Static({"a": [("g0",)]}), asked)
    first_s, token_s = fastest(engine, np.array([float(prompt)]), False)
    ttft = run.requests["first_token_s"].to_numpy()
    e2e = run.requests["finish_s"].to_numpy()
    assert (ttft >= first_s - 1e-6).all()
    assert (e2e - ttft >= (output - 1) * token_s - 1e-6).all()


def test_the_fastest_is_what_a_request_alone_takes_by_a_plain_step_time() -> None:
    step = StepTime(2e-3, 1e-3, 1e-3, 1, 0.0, 5e-3, 1e-5, 1e-4, 100)
    engine = Generate(step, 4000, max_batched_tokens=512)
    first_s, token_s = fastest(engine, np.array([50.0, 300.0, 900.0]), False)
    assert first_s.tolist() == pytest.approx(
        [5e-3 + 50e-5, 3 * 5e-3 + 300e-5, 9 * 5e-3 + 900e-5]  # steps of 100, where it bends
    )
    assert token_s == pytest.approx(3e-3)
    assert fastest(engine, np.array([900.0]), True)[0] == pytest.approx(5e-3 + 1e-5)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.integers(2, 4))
def test_what_fits_on_a_gpu_never_measures_more_than_one(sizes: list[float], k: int) -> None:
    total = sum(sizes)
    sizes = [size / max(total, 1.0) for size in sizes]
    assert sum(_counted(size, k) for size in sizes) <= 1 + 1e-6
    for at in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert sum(_large_or_small(size, at) for size in sizes) <= 1 + 1e-6


def test_measures_see_that_two_halves_and_a_bit_do_not_fit() -> None:
    assert 3 * _large_or_small(0.51, 0.5) == 3 > 2  # three on two GPUs, though 1.53 < 2
    assert 5 * _counted(0.34, 2) == 2.5 > 2
