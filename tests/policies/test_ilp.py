"""The `ilp` policy: plans, what it does between them, and the forecast under it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.control.state import FrozenDemand
from modelium.core import (
    ClusterState,
    Done,
    Load,
    Miss,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.policies.ilp.policy import Ilp
from modelium.policies.ilp.problem import Problem
from modelium.policies.ilp.search import Answer
from modelium.policies.ilp.view import View
from modelium.policies.toolkit.forecast import EwmaForecast

SLOW = ConfiguredFacts(default_stages=Stages(), default_links=Links())
"""A load takes twenty seconds and more, a wake one."""


class Known:
    """A forecast that is told."""

    def __init__(self, **rates: float) -> None:
        self.rates = rates

    def rate_per_s(self, state: ClusterState, model: str, horizon_s: float) -> float:
        return self.rates.get(model, 0.0)


def plan_of(world: Any, ilp: Ilp) -> list[Any]:
    """What it would do at a tick now."""
    return list(ilp.decide(world.state, Tick()))


def test_it_loads_what_the_forecast_wants_and_says_what_that_gains(world: Any) -> None:
    here = world({"a": 40, "b": 40, "c": 10}, facts=SLOW)
    actions = plan_of(here, Ilp(forecast=Known(a=0.4, b=0.001)))
    loads = [action for action in actions if isinstance(action, Load)]
    assert [load.model for load in loads] == ["a"]  # one load at a time on a GPU; then b
    assert "serves 0.4/s of a" in loads[0].reason
    assert loads[0].reason.startswith("plan +")


def test_it_makes_room_for_the_model_that_is_asked_for_more(world: Any) -> None:
    here = world({"a": 60, "b": 60}, facts=SLOW)
    here.load("a g0")
    actions = plan_of(here, Ilp(forecast=Known(a=0.0001, b=0.5), sleep=False))
    assert [type(action) for action in actions] == [Unload, Load]
    assert "frees 60.0 GiB of a (0.0001/s)" in actions[0].reason


def test_a_plan_puts_to_sleep_rather_than_unload_and_loads_after_that(world: Any) -> None:
    here = world({"a": 60, "b": 60}, facts=SLOW, more={"a": {"asleep_bytes": 1 << 30}})
    here.load("a g0")
    here.obey(Ilp(forecast=Known(a=0.01, b=0.5), move_per_s=0.0))
    here.cluster.run(60.0)
    assert [type(action) for _, action in here.log] == [Sleep, Load]
    phases = {copy.model: copy.phase for copy in here.state.instances.values()}
    assert phases == {"a": Phase.ASLEEP, "b": Phase.READY}


def test_what_finds_no_ram_to_sleep_in_stays_awake(world: Any) -> None:
    asleep = {"asleep_bytes": 1 << 30}
    sizes, more = {"a": 60, "b": 60}, {"a": asleep, "b": asleep}
    here = world(sizes, (80, 80), host_gib=100, facts=SLOW, more=more)
    a, b = here.load("a g0", "b g1")
    ilp = Ilp(forecast=Known())
    problem = Problem((), ())
    both = {a: "plan: sleeps", b: "plan: sleeps"}
    plan = Answer(problem, here.state.now_s, {}, both, keep=frozenset(both))
    assert list(ilp.adopt(here.state, plan)) == [Sleep(a, 1, "plan: sleeps")]


def test_a_plan_wakes_what_sleeps(world: Any) -> None:
    here = world({"a": 60}, facts=SLOW)
    (a,) = here.load("a g0")
    here.cluster.start(Sleep(a))
    here.cluster.run(10.0)
    actions = plan_of(here, Ilp(forecast=Known(a=0.5)))
    assert [type(action) for action in actions] == [Wake]


def test_no_change_of_demand_means_no_moves(world: Any) -> None:
    here = world({"a": 30, "b": 30, "c": 30, "d": 30}, [80, 80], facts=SLOW)
    here.obey(Ilp(forecast=Known(a=0.4, b=0.3, c=0.2, d=0.1), every_s=300.0))
    here.cluster.run(250.0)
    assert here.residents() == ["a", "b", "c", "d"]
    before = len(here.log)
    here.cluster.run(3000.0)
    assert len(here.log) == before


def test_small_gains_do_not_move_anything(world: Any) -> None:
    rates = Known(a=0.010, b=0.012)
    moved = []
    for hysteresis in (0.0, 1.0):
        here = world({"a": 60, "b": 60}, facts=SLOW)
        here.load("a g0")
        ilp = Ilp(
            forecast=rates, hysteresis=hysteresis, min_gain=0.0, sleep=False,
            move_per_s=0.0, crowd_share=1.0,
        )  # fmt: skip
        moved.append(bool(plan_of(here, ilp)))
    assert moved == [True, False]


def test_a_miss_between_plans_loads_at_once_and_evicts_what_the_plan_values_least(
    world: Any,
) -> None:
    here = world({"hot": 30, "cold": 30, "new": 30}, facts=SLOW)
    here.load("hot g0", "cold g0")
    here.obey(Ilp(forecast=Known(hot=0.5, cold=0.001), every_s=1e6, sleep=False))
    before = len(here.log)
    here.cluster.submit("new")
    here.cluster.run(0.0)
    assert [type(action) for _, action in here.log[before:]] == [Unload, Load]
    assert here.log[before][1].instance.startswith("cold")
    here.cluster.run(60.0)
    assert here.state.demand["new"].waiting == 0


def test_what_a_miss_brought_is_not_undone_by_the_old_plan(world: Any) -> None:
    here = world({"a": 60, "b": 60}, facts=SLOW)
    here.obey(Ilp(forecast=Known(a=0.5, b=0.001), every_s=1e6))
    here.cluster.run(60.0)
    here.use("b", apart_s=100.0)
    here.cluster.run(1000.0)
    assert here.did(Load) == ["a", "b"]


def test_sleepers_are_unloaded_only_as_far_as_needed(world: Any) -> None:
    asleep = {"asleep_bytes": 4 << 30}
    here = world({"s1": 10, "s2": 10, "big": 75}, facts=SLOW, more={"s1": asleep, "s2": asleep})
    ids = here.load("s1 g0", "s2 g0")
    here.obey(Ilp(forecast=Known(s1=0.5, s2=0.001), every_s=1e6))
    here.cluster.submit("big")
    here.cluster.run(0.0)
    assert here.did(Sleep) == [ids[0]]
    assert here.did(Unload) == [ids[1]]


def test_pinned_models_and_least_replicas_come_first(world: Any) -> None:
    more = {"p": {"pinned": True}, "r": {"min_replicas": 2}}
    here = world({"p": 30, "r": 30, "x": 60}, [80, 80], facts=SLOW, more=more)
    here.obey(Ilp(forecast=Known(x=1.0)))
    here.cluster.run(200.0)
    assert here.residents() == ["p", "r", "r"]


def test_same_inputs_same_decisions(world: Any) -> None:
    def decisions() -> list[str]:
        here = world({f"m{i}": 10 + 7 * i for i in range(8)}, [80, 80], facts=SLOW)
        here.obey(Ilp(every_s=100.0, move_per_s=0.01))
        for i in (1, 3, 5, 7, 2, 4, 6, 0, 7, 7, 3, 1) * 4:
            here.use(f"m{i}")
        return [repr(entry) for entry in here.log]

    first = decisions()
    assert first == decisions()
    assert any("plan +" in line for line in first)


def test_kv_pool_grows_with_demand_between_its_bounds(world: Any) -> None:
    more = {"a": {"kv_bytes": 16 << 30, "kv_bytes_per_token": 1 << 17}}
    here = world({"a": 10}, facts=SLOW, more=more)

    def pool(rate: float) -> int:
        state = here.state.snapshot()
        state.demand["a"] = FrozenDemand(1000, 0, 0.0, 0.0, rate, 700_000, 200_000)
        return View(state, Ilp(kv_least=0.25)._aims, Known(a=rate)).kv_bytes("a")

    pools = [pool(rate) for rate in (0.0, 0.01, 1.0, 3.0, 100.0)]
    assert pools[0] == 4 << 30
    assert pools[-1] == 16 << 30
    assert pools == sorted(pools)
    assert pools[0] < pools[3] < pools[4]


@pytest.mark.parametrize("start_s", [0.5, 2.0, 20.0])
def test_late_requests_are_those_of_a_poisson_stream(world: Any, start_s: float) -> None:
    from modelium.core import Slo

    here = world({"a": 10}, more={"a": {"slo": Slo(ttft_s=2.0)}})
    rate, horizon_s, n = 0.3, 900.0, 200_000
    view = View(here.state, Ilp(horizon_s=horizon_s)._aims, Known(a=rate))
    step = start_s / n
    waits = (start_s - (i + 0.5) * step for i in range(n))
    followers = rate * step * sum(min(1.0, wait / 2.0) for wait in waits)
    chance = 1 - math.exp(-rate * horizon_s)
    expected = chance * (min(1.0, start_s / 2.0) + followers)
    assert view.late("a", start_s) == pytest.approx(expected, rel=1e-6)


# The forecast


def seen(now_s: float, arrivals: int, burst: float = 0.0) -> Any:
    demand = SimpleNamespace(arrivals=arrivals, request_rate_per_s=burst)
    return SimpleNamespace(now_s=now_s, demand={"m": demand})


def test_a_steady_stream_is_forecast_at_its_rate_from_the_start() -> None:
    forecast = EwmaForecast(base_s=7200.0, fade_s=600.0)
    for minute in range(30):
        got = forecast.rate_per_s(seen(60.0 * minute, 12 * minute, 0.2), "m", 900.0)
    assert got == pytest.approx(0.2)


def test_a_burst_fades_into_the_base_rate() -> None:
    forecast = EwmaForecast(base_s=7200.0, fade_s=600.0)
    for minute in range(600):
        forecast.rate_per_s(seen(60.0 * minute, 6 * minute, 0.1), "m", 900.0)
    burst = seen(60.0 * 599, 6 * 599, 1.1)
    near, far = (forecast.rate_per_s(burst, "m", horizon) for horizon in (1.0, 1e6))
    assert near == pytest.approx(1.1, rel=1e-2)
    assert far == pytest.approx(0.1, rel=1e-2)
    assert forecast.rate_per_s(burst, "m", 600.0) == pytest.approx(
        0.1 + (1 - math.exp(-1)), rel=1e-3
    )


def test_silence_is_forgotten_at_the_base_windows_pace() -> None:
    forecast = EwmaForecast(base_s=1000.0, fade_s=600.0)
    forecast.rate_per_s(seen(0.0, 0), "m", 900.0)
    forecast.rate_per_s(seen(10_000.0, 1000, 0.1), "m", 900.0)
    got = forecast.rate_per_s(seen(11_000.0, 1000, 0.0), "m", 1e9)
    assert got == pytest.approx(0.1 * math.exp(-1), rel=1e-3)


def test_refused_and_remind_events_are_harmless(world: Any) -> None:
    here = world({"a": 10})
    ilp = Ilp(forecast=Known())
    assert not plan_of(here, ilp)
    assert not list(ilp.decide(here.state, Done(Remind(0.0))))


# Planning off the loop


def test_a_search_reads_nothing_after_it_was_posed(world: Any) -> None:
    def posed() -> tuple[Any, Any]:
        here = world({"a": 60, "b": 60, "c": 20}, facts=SLOW)
        here.load("a g0", "c g0")
        return here, Ilp(forecast=Known(a=0.0001, b=0.5, c=0.1)).pose(here.state)

    _, search = posed()
    here, late = posed()
    answer = search()
    here.cluster.lose("g0")
    here.cluster.run(10.0)
    with ThreadPoolExecutor(4) as threads:
        assert [answer] * 8 == list(threads.map(lambda _: late(), range(8)))
    assert answer.reasons


def test_the_forecast_is_asked_only_while_posing(world: Any) -> None:
    class Counting(Known):
        asked = 0

        def rate_per_s(self, state: ClusterState, model: str, horizon_s: float) -> float:
            self.asked += 1
            return super().rate_per_s(state, model, horizon_s)

    here = world({"a": 60, "b": 60}, facts=SLOW)
    forecast = Counting(a=0.5)
    search = Ilp(forecast=forecast).pose(here.state)
    asked = forecast.asked
    assert asked
    assert search().target
    assert forecast.asked == asked


def test_misses_are_answered_during_a_search_and_the_plan_keeps_what_they_did(world: Any) -> None:
    here = world({"a": 40, "b": 40, "c": 40}, facts=SLOW)
    here.load("a g0")
    ilp = Ilp(forecast=Known(a=0.5, b=0.4, c=0.0001), sleep=False)
    search = ilp.pose(here.state)
    for name in ("c", "b"):  # c takes the room that the plan has for b
        here.cluster.submit(name)
        for event in (Miss(name),):
            for action in ilp.decide(here.state, event):
                here.cluster.start(action)
        here.cluster.run(60.0)
    assert here.residents() == ["a", "b"]
    assert here.state.demand["b"].waiting == here.state.demand["c"].waiting == 0
    assert not list(ilp.adopt(here.state, search()))  # b is there already


def test_a_copy_that_fell_asleep_during_the_search_stays_asleep(world: Any) -> None:
    more = {"a": {"asleep_bytes": 1 << 30}}
    here = world({"a": 60, "b": 60, "c": 5}, facts=SLOW, more=more)
    (a,) = here.load("a g0")
    ilp = Ilp(forecast=Known(a=0.01, b=0.001, c=0.5))
    search = ilp.pose(here.state)
    here.cluster.submit("b")
    for _ in range(3):
        for action in ilp.decide(here.state, Miss("b")):
            here.cluster.start(action)
        here.cluster.run(60.0)
    assert here.state.instances[a].phase is Phase.ASLEEP
    [load] = ilp.adopt(here.state, search())
    assert (type(load), load.model) == (Load, "c")
