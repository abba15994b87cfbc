"""Plans in their time, reactions in between, packing by hand-made cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Limits,
    Load,
    Miss,
    Move,
    Sleep,
    Tick,
    Unload,
)  # fmt: skip
from modelium.policies.bfd import Bfd
from modelium.policies.ffd import Ffd
from modelium.policies.ilp.policy import Ilp
from modelium.policies.lru import Lru
from modelium.policies.static import Static
from modelium.policies.toolkit.bin_packing import pack
from modelium.policies.toolkit.diff import Target
from modelium.policies.toolkit.placement import best_fit, first_fit
from modelium.policies.toolkit.planned import Plan, Planned


def test_it_plans_at_the_first_tick_and_then_every_period(world: type) -> None:
    times: list[float] = []

    def plan(state: ClusterState) -> dict[str, list[tuple[str, ...]]]:
        times.append(state.now_s)
        return {}

    world({"a": 1}).obey(Planned(plan, 30.0)).cluster.run(100.0)
    assert times == [0.0, 30.0, 60.0, 90.0]


def test_a_miss_between_plans_is_answered_at_once_and_not_undone(world: type) -> None:
    w = world({"a": 60, "b": 60}, [80])
    w.obey(Planned(lambda state: {"a": [("g0",)]}, 1000.0, fallback=Lru()))
    w.use("b", apart_s=50.0)
    assert w.cluster.finished == 1
    assert w.residents() == ["b"]
    w.cluster.run(1000.0)
    assert w.residents() == ["a"]  # the next plan has its way again


def test_a_refused_load_is_not_asked_again_before_the_next_plan(world: type) -> None:
    w = world({"a": 10}, [80])
    policy = Planned(lambda state: {"a": [("g0",)]}, 100.0)
    [load] = policy.decide(w.state, Tick())
    assert list(policy.decide(w.state, Done(load, "crashed", "a#1"))) == [load]
    assert list(policy.decide(w.state, Done(load, "refused for once"))) == []
    assert list(policy.decide(w.state, Done(load, "crashed", "a#1"))) == []


def test_several_loads_on_a_gpu_follow_each_other(world: type) -> None:
    w = world(dict.fromkeys("abcd", 10), [80])
    w.obey(Planned(lambda state: {name: [("g0",)] for name in "abcd"}, None))
    assert w.residents() == ["a", "b", "c", "d"]


# static


def test_static_loads_its_placement_and_leaves_other_models_waiting(world: type) -> None:
    w = world({"a": 60, "b": 60}, [80]).obey(Static({"a": [["g0"]]}))
    w.use("a", "b", "a", apart_s=100.0)
    assert w.residents() == ["a"]
    assert (w.cluster.finished, w.cluster.submitted) == (2, 3)


def test_static_restores_its_placement_after_a_fault(world: type) -> None:
    w = world({"a": 60}, [80]).obey(Static())
    w.cluster.lose("g0")
    w.cluster.run(10.0)
    assert w.residents() == []
    w.cluster.regain("g0")
    w.cluster.run(10.0)
    assert w.residents() == ["a"]


def test_static_without_a_placement_packs_each_model_once(world: type) -> None:
    w = world({"a": 50, "b": 40, "c": 30, "d": 20, "e": 60}, [80, 80]).obey(Static())
    assert {c.model: c.gpus for c in w.state.instances.values()} == {
        "a": ("g0",), "c": ("g0",), "b": ("g1",), "d": ("g1",),
    }  # fmt: skip


# packing


def packed(world: type, sizes: dict[str, float], gpus: list[float], place: object) -> object:
    return pack(world(sizes, gpus).state, {}, place, 1.0)  # type: ignore[arg-type]


def test_first_fit_decreasing_by_hand(world: type) -> None:
    sizes = {"a": 20, "b": 50, "c": 30, "d": 60}
    got = packed(world, sizes, [80, 80], first_fit)  # d, b, c, a
    assert got == {"d": [("g0",)], "b": [("g1",)], "c": [("g1",)], "a": [("g0",)]}


def test_best_fit_decreasing_takes_the_fullest_gpu_where_first_fit_does_not(world: type) -> None:
    sizes = {"a": 60, "b": 50, "c": 30}
    gpus = [100.0, 80.0, 55.0]
    assert packed(world, sizes, gpus, first_fit) == {
        "a": [("g0",)], "b": [("g1",)], "c": [("g0",)],
    }  # fmt: skip
    assert packed(world, sizes, gpus, best_fit) == {
        "a": [("g1",)], "b": [("g2",)], "c": [("g0",)],
    }  # fmt: skip


def test_what_must_be_there_comes_first_and_tensor_parallel_before_single(world: type) -> None:
    more = {"pin": {"pinned": True}, "tp": {"gpus": 2}}
    w = world({"pin": 20, "tp": 140, "big": 75}, [80, 80], more=more)
    assert pack(w.state, {}, first_fit, 1.0) == {"pin": [("g0",)], "big": [("g1",)]}
    w = world({"tp": 140, "big": 75}, [80, 80], more=more)
    assert pack(w.state, {}, first_fit, 1.0) == {"tp": [("g0", "g1")]}


def test_load_decides_how_many_copies_and_is_never_over_the_limit(world: type) -> None:
    w = world({"a": 10, "b": 10, "quiet": 10}, [80, 80, 80], service_s=1.0)
    w.cluster.submit("a")
    w.cluster.submit("b")
    got = pack(w.state, {"a": 1.4, "b": 0.6, "quiet": 0.0}, first_fit, 0.7)
    assert len(got["a"]) == 2  # ceil(1.4 / 0.7)
    assert len(got["b"]) == 1
    assert "quiet" not in got
    assert not set(got["b"]) & set(got["a"])  # 0.7 + 0.6 is more than 0.7


def test_copies_of_a_model_prefer_different_nodes(world: type) -> None:
    w = world({"a": 10}, [80] * 4, nodes=[0, 0, 1, 1])
    w.cluster.submit("a")
    got = pack(w.state, {"a": 1.4}, first_fit, 0.7)
    assert got == {"a": [("g0",), ("g2",)]}


def test_what_is_asked_most_is_packed_when_not_all_fits(world: type) -> None:
    w = world({"large": 70, "a": 40, "b": 40}, [80])
    for name in ("large", "a", "b"):
        w.cluster.submit(name)
    got = pack(w.state, {"large": 0.01, "a": 0.1, "b": 0.1}, first_fit, 0.7)
    assert sorted(got) == ["a", "b"]


@pytest.mark.parametrize("policy", [Ffd, Bfd])
def test_packing_follows_demand_and_serves_misses_in_between(world: type, policy: type) -> None:
    w = world(dict.fromkeys("abcd", 40), [80], service_s=1.0).obey(policy(every_s=100.0))
    w.use(*"ab" * 10, apart_s=8.0)
    assert w.residents() == ["a", "b"]
    w.use(*"cd" * 10, apart_s=8.0)
    assert w.residents() == ["c", "d"]
    assert w.cluster.finished == 40
    assert len(w.did(Load)) <= 8
    assert len(w.did(Unload)) <= 6


def test_no_demand_no_moves(world: type) -> None:
    w = world(dict.fromkeys("abcd", 40), [80]).obey(Ffd(every_s=10.0))
    w.use("a", "b")
    done = len(w.log)
    w.cluster.run(1000.0)
    assert len(w.log) == done
    assert not any(isinstance(event, Miss) for event in w.heard[-10:])


def test_what_was_loaded_instead_of_a_lost_copy_is_not_doubled_when_its_gpu_is_back(
    world: type,
) -> None:
    w = world({"pin": 10}, [80, 80], more={"pin": {"pinned": True}})
    w.obey(Planned(lambda state: {"pin": [("g1",)]}, None, fallback=Lru()))
    w.cluster.lose("g1")
    w.cluster.run(10.0)
    assert [copy.gpus for copy in w.state.instances.values()] == [("g0",)]
    w.cluster.regain("g1")
    w.cluster.run(10.0)
    assert [copy.gpus for copy in w.state.instances.values()] == [("g0",)]


# Planning off the loop


def searched(*targets: Target) -> Plan:
    """Plans that are found later."""
    left = iter(targets)
    return lambda state: partial(dict, next(left))


class Between:
    """A policy as it decides while a search goes on."""

    def __init__(self, policy: Planned) -> None:
        self.policy = policy

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        return () if isinstance(event, Tick) else self.policy.decide(state, event)


@pytest.mark.parametrize("policy", [Ffd, Ilp])
def test_a_plan_that_is_posed_and_adopted_at_once_is_that_of_the_tick(
    world: type, policy: Callable[[], Planned]
) -> None:
    class Apart:
        """Decides as a live cluster does, in the shortest time."""

        def __init__(self) -> None:
            self.of = policy()
            self.every_s = self.of.every_s

        def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
            if isinstance(event, Tick) and (search := self.of.pose(state)):
                return self.of.adopt(state, search())
            return self.of.decide(state, event)

    logs = []
    for one in (policy(), Apart()):
        w = world(dict.fromkeys("abcd", 30), [80]).obey(one)
        logs.append(w.use(*"abcadbcaacdb" * 5, apart_s=40.0).log)
    assert logs[0] == logs[1]
    assert logs[0]


def test_only_one_search_is_posed_a_period(world: type) -> None:
    w = world({"a": 10})
    policy = Planned(searched({}, {}), 30.0)
    assert policy.pose(w.state)
    assert policy.pose(w.state) is None
    assert not list(policy.decide(w.state, Tick()))  # nothing to follow yet
    w.cluster.run(30.0)
    assert policy.pose(w.state)


def begin(world: Any, policy: Planned) -> Callable[[], Iterable[Action]]:
    """Begin a search; what ends it."""
    search = policy.pose(world.state)
    assert search is not None
    world.obey(Between(policy))
    return lambda: list(policy.adopt(world.state, search()))


def test_what_a_miss_loads_during_a_search_is_kept_and_stands_for_what_the_plan_wanted(
    world: type,
) -> None:
    w = world({"a": 30}, [80, 80])
    policy = Planned(searched({"a": [("g1",)]}), 1000.0, fallback=Lru())
    adopt = begin(w, policy)
    w.use("a")
    assert [copy.gpus for copy in w.state.instances.values()] == [("g0",)]
    assert not adopt()  # one copy was wanted, one is there
    w.use("a")
    assert w.did(Load) == ["a"]


def test_what_a_miss_evicts_during_a_search_does_not_come_back_by_the_plan(world: type) -> None:
    w = world({"a": 60, "b": 60})
    w.load("a g0")
    adopt = begin(w, Planned(searched({"a": [("g0",)]}), 1000.0, fallback=Lru()))
    w.use("b")
    assert w.residents() == ["b"]
    assert not adopt()


def test_what_breaks_during_a_search_comes_back_by_the_plan(world: type) -> None:
    w = world({"a": 60})
    w.load("a g0")
    adopt = begin(w, Planned(searched({"a": [("g0",)]}), None))
    w.cluster.lose("g0")
    w.cluster.regain("g0")
    w.cluster.run(0.0)
    assert adopt() == [Load("a", ("g0",), "the plan wants it here; loads in 0 s")]


def about_to_move(world: type) -> tuple[Any, Callable[[], Iterable[Any]]]:
    """`a` moves from g0 once `b` has been loaded; the plan being searched wants it back."""
    slow = ConfiguredFacts(default_stages=Stages(), default_links=Links())
    w = world({"b": 10, "a": 30}, [80, 80, 80], facts=slow, limits=Limits(loads_at_once=1))
    w.load("a g0")
    there, back = {"a": [("g1",)], "b": [("g2",)]}, {"a": [("g0",)], "b": [("g2",)]}
    policy = Planned(searched(there, back), 5.0)
    w.obey(policy)  # b loads first
    w.obey(Between(policy))
    w.cluster.run(6.0)
    adopt = begin(w, policy)
    return w, adopt


def test_a_move_during_a_search_is_not_moved_back_by_the_plan(world: type) -> None:
    w, adopt = about_to_move(world)
    w.cluster.run(1.0)
    assert w.did(Move) == []
    w.cluster.run(1000.0)
    assert w.did(Move) == ["a#1"]
    assert not adopt()


def test_a_move_that_is_under_way_when_the_plan_comes_is_not_made_two_copies(world: type) -> None:
    w, adopt = about_to_move(world)
    while not w.did(Move):
        w.cluster.run(1.0)
    assert {copy.gpus for copy in w.state.instances_of("a")} == {("g0",), ("g1",)}  # both awake
    assert not adopt()
    w.cluster.run(1000.0)
    assert [copy.gpus for copy in w.state.instances_of("a")] == [("g1",)]
    assert "a" not in w.did(Load)


class Stubborn:
    """Asks for what is refused: a busy copy is not unloaded."""

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        return [Unload(c.id) for c in state.instances.values()] if isinstance(event, Miss) else []


def test_what_was_refused_during_a_search_did_not_happen(world: type) -> None:
    w = world({"a": 30, "b": 80})
    w.load("a g0")
    policy = Planned(searched({"a": [("g0",)]}), 1000.0, fallback=Stubborn(), tidy=True)
    adopt = begin(w, policy)
    w.cluster.submit("a", 1e6)
    w.cluster.submit("b")
    w.cluster.run(1.0)
    assert w.residents() == ["a"]
    assert not adopt()


@pytest.mark.parametrize("asleep", [False, True])
def test_what_an_operator_takes_away_stays_away_until_the_next_plan(
    world: Any, asleep: bool
) -> None:
    policy = Planned(lambda state: {"a": [("g0",)]}, 100.0, fallback=Lru())
    w = world({"a": 40, "b": 40}, [80]).obey(policy)
    w.cluster.begin(100.0)
    w.cluster.run(1.0)
    [copy] = w.state.instances
    why = "an operator asked for it (1 call)"
    w.cluster.start(Sleep(copy, 1, why) if asleep else Unload(copy, why))
    w.cluster.run(50.0)
    assert [c.phase.value for c in w.state.instances.values()] == (["asleep"] if asleep else [])
    w.use("a")
    assert w.cluster.finished == 1  # whoever asks gets it
    w.cluster.start(Sleep("a#1", 1, why) if asleep else Unload("a#2", why))
    w.cluster.run(100.0)
    assert [c.phase.value for c in w.state.instances.values()] == ["ready"]  # the next plan
