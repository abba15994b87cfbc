"""From a state to a target: what stays, moves, leaves and comes, in which order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.core import Limits, Load, Move, Phase, Sleep, Unload, Wake
from modelium.policies.toolkit.diff import Target, diff
from modelium.policies.toolkit.planned import Planned


def test_what_is_right_stays(world: type) -> None:
    w = world({"a": 40, "b": 40}, [80, 80])
    w.load("a g0", "b g1")
    assert diff(w.state, {"a": [("g0",)], "b": [("g1",)]}) == []


def test_unloads_come_before_the_loads_that_need_their_room(world: type) -> None:
    w = world({"a": 60, "b": 60}, [80])
    w.load("a g0")
    unload, load = diff(w.state, {"b": [("g0",)]})
    assert isinstance(unload, Unload)
    assert unload.instance == "a#1"
    assert not unload.drain
    assert isinstance(load, Load)
    assert (load.model, load.gpus) == ("b", ("g0",))


def test_a_busy_copy_is_drained_and_idle_ones_make_room_first(world: type) -> None:
    w = world({"busy": 30, "idle": 30, "b": 30}, [60])
    w.load("busy g0", "idle g0")
    w.cluster.submit("busy", service_s=1e6)
    w.cluster.run(1.0)
    assert [a.instance for a in diff(w.state, {"b": [("g0",)]}, tidy=False)[:-1]] == ["idle#2"]
    leaving = [a for a in diff(w.state, {"b": [("g0",)]}) if isinstance(a, Unload)]
    assert {a.instance: a.drain for a in leaving} == {"idle#2": False, "busy#1": True}


def test_untidy_leaves_alone_what_is_not_in_the_way(world: type) -> None:
    w = world({"a": 20, "b": 20, "c": 20}, [80])
    w.load("a g0", "b g0")
    assert [type(a) for a in diff(w.state, {"c": [("g0",)]}, tidy=False)] == [Load]
    assert [type(a) for a in diff(w.state, {"c": [("g0",)]})] == [Unload, Unload, Load]


def test_a_copy_that_changes_gpus_is_moved_where_there_is_room_for_both(world: type) -> None:
    w = world({"a": 40, "b": 70}, [80, 80])
    w.load("a g0")
    [move] = diff(w.state, {"a": [("g1",)]})
    assert move == Move("a#1", ("g1",), move.reason)


def test_two_copies_swap_places_in_one_go(world: type) -> None:
    w = world({"a": 60, "b": 60}, [80, 80])
    w.load("a g0", "b g1")
    w.obey(Planned(lambda state: {"a": [("g1",)], "b": [("g0",)]}, None, tidy=True))
    w.cluster.run(100.0)
    assert {c.model: c.gpus for c in w.state.instances.values()} == {"a": ("g1",), "b": ("g0",)}


def test_a_sleeper_in_the_right_place_is_woken(world: type) -> None:
    w = world({"a": 40}, [80, 80])
    w.load("a g0")
    w.cluster.start(Sleep("a#1", 1, "test 1"))
    w.cluster.run(10.0)
    [wake] = diff(w.state, {"a": [("g0",)]})
    assert isinstance(wake, Wake)
    assert diff(w.state, {}) == []  # sleepers that are in nobody's way sleep on


def test_a_moving_copy_is_not_dropped_before_its_successor_is_ready(world: type) -> None:
    w = world({"a": 40}, [80, 80])
    w.load("a g0")
    target: Target = {"a": [("g1",)]}
    w.cluster.start(Load("a", ("g1",), "test 1"))
    assert diff(w.state, target) == []
    w.cluster.run(10.0)
    [unload] = diff(w.state, target)
    assert unload == Unload("a#1", unload.reason)


def test_pinned_needed_and_young_copies_do_not_leave(world: type) -> None:
    w = world({"pin": 20, "b": 20, "c": 70}, [80], more={"pin": {"pinned": True}})
    w.load("pin g0")
    assert diff(w.state, {}) == []
    assert diff(w.state, {"c": [("g0",)]}) == []
    w = world({"min": 20}, [80], more={"min": {"min_replicas": 1}})
    w.load("min g0")
    assert diff(w.state, {}) == []
    w = world({"b": 20, "c": 70}, [80], limits=Limits(min_residency_s=1000.0))
    w.load("b g0")
    assert diff(w.state, {"c": [("g0",)]}) == []


def test_a_limit_of_one_copy_is_kept_while_its_place_changes(world: type) -> None:
    w = world({"one": 60, "b": 60}, [80, 80], more={"one": {"max_replicas": 1}})
    w.load("one g0", "b g1")
    assert [type(a) for a in diff(w.state, {"one": [("g1",)]})] == [Unload, Move]
    untidy = diff(w.state, {"one": [("g1",)]}, tidy=False)  # no room for two yet
    assert [type(a) for a in untidy] == [Unload, Unload, Load]


def test_reasons_are_the_plans_own_where_it_gives_them(world: type) -> None:
    w = world({"a": 60}, [80])
    [load] = diff(w.state, {"a": [("g0",)]}, reasons={"a": "gains 3 requests"})
    assert load.reason == "gains 3 requests"


MODELS = {"a": 10, "b": 20, "c": 30, "d": 35}
GPUS = ["g0", "g1", "g2"]
PLACES = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(GPUS)), max_size=7)


def fitting(places: list[tuple[str, str]]) -> dict[str, list[tuple[str, ...]]]:
    room = dict.fromkeys(GPUS, 40)
    target: dict[str, list[tuple[str, ...]]] = {}
    for model, gpu in dict.fromkeys(places):
        if room[gpu] >= MODELS[model]:
            room[gpu] -= MODELS[model]
            target.setdefault(model, []).append((gpu,))
    return target


@settings(max_examples=200)
@given(now=PLACES, then=PLACES, tidy=st.booleans(), busy=st.booleans())
def test_pursuing_a_target_that_fits_reaches_it(
    world: type,
    now: list[tuple[str, str]],
    then: list[tuple[str, str]],
    tidy: bool,
    busy: bool,
) -> None:
    w = world(MODELS, [40] * 3, service_s=5.0)
    begin, target = fitting(now), fitting(then)
    w.load(*(f"{m} {gpus[0]}" for m, sets in begin.items() for gpus in sets))
    for model in begin if busy else ():
        w.cluster.submit(model)
    w.obey(Planned(lambda state: target, None, tidy=tidy))
    w.cluster.run(500.0)
    there = {(c.model, c.gpus) for c in w.state.instances.values() if c.phase is Phase.READY}
    wanted = {(m, gpus) for m, sets in target.items() for gpus in sets}
    assert there == wanted if tidy else there >= wanted
    assert w.cluster.finished == w.cluster.submitted
    done = len(w.log)
    w.cluster.begin()
    w.cluster.run(100.0)
    assert len(w.log) == done  # and then nothing more


def test_nobody_leaves_for_a_copy_that_may_not_come(world: type) -> None:
    w = world({"a": 60, "b": 60}, [80, 80], more={"b": {"gpus_allowed": frozenset({"g1"})}})
    w.load("a g0")
    assert diff(w.state, {"b": [("g0",)]}, tidy=False) == []
    [load] = diff(w.state, {"b": [("g1",)]}, tidy=False)
    assert (load.model, load.gpus) == ("b", ("g1",))
