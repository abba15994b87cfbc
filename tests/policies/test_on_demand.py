"""Who leaves and where copies go: safety, ties, the global choice, sleep, waiting."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import Action, Done, Limits, Load, Miss, Remind, Sleep, Tick, Unload, Wake
from modelium.plugins.registry import make_policy
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.policies.toolkit.adapters import OnDemand
from modelium.policies.toolkit.eviction import sweep
from modelium.units import GIB

INF = float("inf")
FAST = Links(INF, INF, 2, INF)


def names(instances: list[str]) -> list[str]:
    return [name.split("#")[0] for name in instances]


# Who leaves


def test_the_least_recently_used_of_all_gpus_leaves(world: type) -> None:
    w = world(dict.fromkeys("abcde", 40), [40, 40, 40, 40]).obey(Lru())
    w.use(*"abcd", *"ba", "e")
    assert names(w.did(Unload)) == ["c"]


def test_with_equal_keys_the_lower_id_leaves(world: type) -> None:
    w = world(dict.fromkeys("abc", 40), [40, 40])
    w.load("b g0", "a g1")
    w.obey(OnDemand(evict=lambda state, copy: 0.0))
    w.use("c")
    assert w.did(Unload) == ["a#2"]


def test_busy_pinned_and_last_replicas_stay_whatever_their_key(world: type) -> None:
    more = {"pin": {"pinned": True}, "min": {"min_replicas": 1}}
    w = world({"pin": 20, "min": 20, "busy": 20, "d": 20, "e": 20}, [80], more=more)
    w.load("pin g0", "min g0", "busy g0", "d g0")
    w.cluster.submit("busy", service_s=1e6)
    w.cluster.run(1.0)
    w.use("d")
    w.obey(Lru())
    w.use("e")
    assert names(w.did(Unload)) == ["d"]


def test_a_spare_replica_may_leave(world: type) -> None:
    w = world({"min": 40, "b": 40}, [40, 40], more={"min": {"min_replicas": 1}})
    w.load("min g0", "min g1")
    w.obey(Lru())
    w.use("b")
    assert w.did(Unload) == ["min#1"]
    w.cluster.run(100.0)
    assert w.residents() == ["b", "min"]


def test_when_nobody_may_leave_nothing_is_done_until_somebody_may(world: type) -> None:
    w = world({"a": 40, "b": 40}, [40], service_s=50.0).obey(Lru(drain_after_s=INF))
    w.cluster.submit("a")
    w.cluster.run(1.0)
    w.cluster.submit("b")
    w.cluster.run(48.0)
    assert [type(action) for _, action in w.log] == [Load]
    w.cluster.run(100.0)
    assert w.cluster.finished == 2
    assert [at for at, action in w.log if isinstance(action, Unload)] == [50.0]


def test_it_evicts_until_it_fits_and_no_more(world: type) -> None:
    w = world({"a": 10, "b": 10, "c": 10, "d": 10, "e": 25}, [40]).obey(Lru())
    w.use(*"abcde")
    assert names(w.did(Unload)) == ["a", "b", "c"]


def test_a_copy_that_comes_is_waited_for(world: type) -> None:
    w = world({"a": 40}, [40, 40]).obey(Lru())
    w.load("a g0")
    policy = Lru()
    assert list(policy.decide(w.state, Miss("a"))) == []


def test_young_copies_stay_for_their_minimum_and_then_make_way_at_once(world: type) -> None:
    w = world({"a": 40, "b": 40}, [40], limits=Limits(min_residency_s=100.0)).obey(Lru())
    w.use("a")
    w.use("b", apart_s=300.0)
    [left] = [at for at, action in w.log if isinstance(action, Unload)]
    assert left == pytest.approx(100.0, abs=1e-4)
    assert len([a for _, a in w.log if isinstance(a, Remind)]) == 1
    assert w.cluster.finished == 2


def test_a_miss_that_waited_long_enough_drains_a_busy_copy(world: type) -> None:
    def served_at(policy: Lru) -> float:
        w = world({"a": 40, "b": 40}, [40], service_s=10.0).obey(policy)
        for k in range(40):  # never idle: a new request for a every 9 s, each takes 10 s
            w.cluster.at(9.0 * k, lambda: w.cluster.submit("a"))
        w.cluster.at(20.0, lambda: w.cluster.submit("b"))
        w.cluster.run(2000.0)
        assert w.cluster.finished == 41
        return next(at for at, act in w.log if isinstance(act, Load) and act.model == "b")

    assert served_at(Lru(drain_after_s=INF)) >= 390.0  # only after the last request for a
    assert served_at(Lru()) == 20.0  # nothing costs time here: a swap is paid at once
    assert served_at(Lru(drain_after_s=60.0)) == pytest.approx(80.0, abs=1e-4)


# The global choice


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=7, min_size=1),
    st.permutations(range(7)),
    st.integers(1, 6),
    st.integers(1, 2),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_the_sweep_finds_the_set_whose_highest_victim_is_lowest(
    world: type,
    copies: list[tuple[int, int]],
    keys: list[int],
    need: int,
    count: int,
    free: list[int],
) -> None:
    w = world({"a": 1}, [1] * 4, nodes=[0, 0, 1, 1])
    rooms = {f"g{k}": room for k, room in enumerate(free)}
    victims = sorted(
        (keys[i], f"i{i}", _Fake((f"g{gpu}",), size)) for i, (gpu, size) in enumerate(copies)
    )
    found = sweep(w.state, rooms, need, count, iter(victims), lambda copy: copy.size)  # type: ignore[arg-type, attr-defined]
    if sum(room >= need for room in free[:2]) >= count:
        return  # nobody has to leave: not its business
    if sum(room >= need for room in free[2:]) >= count:
        return

    def highest(gpus: tuple[str, ...]) -> int | None:
        worst = -1
        for gpu in gpus:
            room = rooms[gpu]
            for key, _, copy in victims:
                if room >= need:
                    break
                if copy.gpus == (gpu,):
                    room += copy.size
                    worst = max(worst, key)
            if room < need:
                return None
        return worst

    pairs = [*combinations(("g0", "g1"), count), *combinations(("g2", "g3"), count)]
    possible = [height for pair in pairs if (height := highest(pair)) is not None]
    if not possible:
        assert found is None
        return
    assert found is not None
    assert max(key for key, _, _ in found.victims) == min(possible) == highest(found.gpus)
    for gpu in found.gpus:
        gained = sum(c.size for _, _, c in found.victims if c.gpus == (gpu,))  # type: ignore[attr-defined]
        assert rooms[gpu] + gained >= need


class _Fake:
    def __init__(self, gpus: tuple[str, ...], size: int) -> None:
        self.gpus, self.size = gpus, size


def test_equal_places_go_to_the_first_in_the_configuration(world: type) -> None:
    w = world({"a": 10, "tp": 80}, [80] * 4, nodes=[0, 0, 1, 1], more={"tp": {"gpus": 2}})
    w.obey(Lru()).use("tp", "a")
    loads = [action.gpus for _, action in w.log if isinstance(action, Load)]
    assert loads == [("g0", "g1"), ("g2",)]


def test_a_tensor_parallel_model_takes_one_node(world: type) -> None:
    w = world({"a": 40, "tp": 80}, [40] * 4, nodes=[0, 0, 1, 1], more={"tp": {"gpus": 2}})
    w.load("a g0", "a g2")
    w.obey(Lru())
    w.use("tp")
    [load] = [action for _, action in w.log if isinstance(action, Load)]
    assert sorted(load.gpus) in (["g0", "g1"], ["g2", "g3"])
    assert w.did(Unload) == ["a#1"]


def test_who_is_not_in_the_way_stays_although_its_key_is_lower(world: type) -> None:
    w = world({"small": 10, "a": 40, "b": 40, "new": 40}, [40, 50])
    w.load("small g1", "b g1", "a g0")
    w.obey(Lru())
    w.use("small", "a", "b", "new")
    # On g1 small (the older) alone would not make room: a, alone on g0, is the lowest that does.
    assert names(w.did(Unload)) == ["a"]


def test_of_a_group_of_gpus_only_those_in_the_way_leave(world: type) -> None:
    w = world({"x": 40, "y": 40, "z": 80, "tp": 80}, [80, 80], more={"tp": {"gpus": 2}})
    w.load("x g0", "y g0", "z g1")
    w.obey(Lru())
    w.use("x", "y", "z", "tp")  # x makes room on g0; y, older than z, need not leave
    assert names(w.did(Unload)) == ["x", "z"]


def test_spread_copies_are_never_on_one_node(world: type) -> None:
    more = {"s": {"spread": True, "min_replicas": 3}}
    w = world({"s": 10}, [40] * 4, nodes=[0, 0, 1, 1], more=more).obey(Lru())
    w.cluster.run(100.0)
    assert len({copy.node for copy in w.state.instances.values()}) == 2
    assert len(w.state.instances) == 2


# Where copies go


@pytest.mark.parametrize(
    ("place", "gpu"), [("most_free", "g1"), ("best_fit", "g2"), ("first_fit", "g0")]
)
def test_free_room_is_chosen_by_the_rule_of_placement(world: type, place: str, gpu: str) -> None:
    w = world({"a": 20}, [40, 80, 25, 10]).obey(Lru(place=place))
    w.use("a")
    [load] = [action for _, action in w.log if isinstance(action, Load)]
    assert load.gpus == (gpu,)


def test_pinned_models_and_minimum_replicas_are_there_from_the_first_tick(world: type) -> None:
    more = {"pin": {"pinned": True}, "min": {"min_replicas": 2}}
    w = world({"pin": 60, "min": 10, "c": 10}, [80, 80], more=more).obey(Lru())
    assert w.residents() == ["min", "min", "pin"]
    w.cluster.lose("g0")
    w.cluster.run(10.0)
    assert w.residents() == ["min", "min", "pin"]


def test_at_most_so_many_loads_are_begun_at_once(world: type) -> None:
    one = Limits(loads_at_once=1)
    w = world(dict.fromkeys("abc", 10), [40] * 3, limits=one, facts=ConfiguredFacts()).obey(Lru())
    for name in "abc":
        w.cluster.submit(name)
    w.cluster.run(1.0)
    assert w.did(Load) == ["a"]
    w.cluster.run(1000.0)
    assert w.cluster.finished == 3


def test_queues_call_for_more_copies_where_they_are_allowed(world: type) -> None:
    w = world({"a": 10}, [10] * 4, service_s=30.0)
    w.obey(Lru(max_replicas=3, scale_waiting=4, scale_every_s=5.0))
    for _ in range(4):
        w.cluster.submit("a")  # one is served, three queue: not four a copy
    w.cluster.run(20.0)
    assert w.did(Load) == ["a"]
    for _ in range(30):
        w.cluster.submit("a")
    w.cluster.run(20.0)
    assert w.did(Load) == ["a"] * 3  # a fourth GPU is free, but three copies are the limit


# Sleep


def test_evicted_copies_sleep_in_host_memory_while_it_has_room(world: type) -> None:
    more = {name: {"asleep_bytes": GIB} for name in "abcd"}
    w = world(dict.fromkeys("abcd", 30), [35], more=more, host_gib=65)
    w.obey(Lru(sleep_level=1))
    w.use(*"abcd")
    assert names(w.did(Sleep)) == ["a", "b"]
    assert names(w.did(Unload)) == ["c"]
    w.use("a")  # d, idle, cannot sleep: no room in host memory
    assert names(w.did(Wake)) == ["a"]
    assert names(w.did(Unload)) == ["c", "d"]


def test_sleepers_are_unloaded_only_where_their_room_is_needed(world: type) -> None:
    more = {name: {"asleep_bytes": 5 * GIB} for name in "abc"}
    w = world({"a": 30, "b": 30, "c": 39}, [40], more=more).obey(Lru(sleep_level=2))
    w.use(*"ab")
    assert names(w.did(Sleep)) == ["a"]
    w.use("c")  # 39 GiB do not fit beside any sleeper
    assert sorted(names(w.did(Unload))) == ["a", "b"]
    assert w.residents() == ["c"]


# Reasons, ticks, chance


def test_reasons_have_the_numbers_that_decided(world: type) -> None:
    w = world({"a": 40, "b": 40}, [40]).obey(Lru())
    w.use("a", apart_s=60.0)
    w.use("b")
    unload, load = [a for _, a in w.log if isinstance(a, Unload | Load)][1:]
    assert unload.reason == "last use at 0, lowest; idle 59.0 s; makes room for b"
    assert load.reason == "1 waiting, oldest 0 s; frees a#1"


def test_only_policies_that_scale_ask_for_ticks(world: type) -> None:
    assert Lru().every_s is None
    assert Lru(max_replicas=2, scale_every_s=3.0).every_s == 3.0
    w = world({"a": 1})
    assert list(Lru().decide(w.state, Tick())) == []


def test_random_eviction_is_a_function_of_its_seed(world: type) -> None:
    def run(seed: int) -> list[str]:
        w = world(dict.fromkeys("abcdefgh", 10), [30]).obey(RandomEvict(seed=seed))
        return w.use(*"abcdefghabcdefghabcdefgh").did(Unload)

    assert run(1) == run(1)
    assert run(1) != run(2)


# Who waits for whom


def test_a_sleeper_in_the_way_would_be_one_too_many(world: type) -> None:
    """Where what a sleeper keeps is lacking, a swap costs the whole load, and is counted so."""
    more = {"busy": {"asleep_bytes": GIB}}
    w = overlapping(world, Lru(sleep_level=1), "busy", more=more)
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    w.cluster.run(30.0)
    [gone] = [(at, a) for at, a in w.log if isinstance(a, Sleep | Unload)]
    assert isinstance(gone[1], Unload)
    assert gone[0] == pytest.approx(121.0, abs=1e-3)


def overlapping(world: type, policy: OnDemand, *models: str, gpus: int = 1, **more: object) -> Any:
    """A world where requests for `models` overlap for ever, and a swap costs what it costs."""
    facts = ConfiguredFacts(
        default_stages=Stages(10.0, 0.0, 0.0, 0.0, 0.0, 0.0), default_links=FAST
    )
    sizes = {**dict.fromkeys(models, 40), "rare": 40}
    w = world(sizes, [40] * gpus, facts=facts, service_s=3.0, **more).obey(policy)
    for name in models:
        for k in range(400):
            w.cluster.at(2.9 * k, partial(w.cluster.submit, name))
    return w


def test_it_tells_who_waits_for_whom_and_how_long_still(world: type) -> None:
    w = overlapping(world, Lru(), "busy")
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    told = w.policy.outlook(w.state, "rare")
    assert told.why == "waits for busy#1 to finish: it will be drained in about 21.0 s"
    assert told.left_s == pytest.approx(21.0 + 1.0 + 10.0)
    assert w.policy.outlook(w.state, "busy") is None
    w.cluster.run(21.1)
    [load] = [at for at, action in w.log if isinstance(action, Load) and action.model == "rare"]
    assert load == pytest.approx(121.0, abs=1e-3)
    assert w.policy.outlook(w.state, "rare") is None  # it is on its way


def test_it_tells_that_nobody_makes_way(world: type) -> None:
    more = {"busy": {"pinned": True}}
    w = overlapping(world, Lru(), "busy", more=more)
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    told = w.policy.outlook(w.state, "rare")
    assert (told.why, told.left_s) == (
        "waits for room: what is there now never makes way for it",
        None,
    )
    w = overlapping(world, Lru(drain_after_s=INF), "busy")
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    told = w.policy.outlook(w.state, "rare")
    assert (told.why, told.left_s) == (
        "waits for a copy in its way to fall idle: none is drained for it",
        None,
    )


def test_a_refused_sleep_becomes_an_unload(world: type) -> None:
    """The cluster may know better than the books how much RAM is left."""
    w = world({"a": 40, "b": 40}, [40], service_s=1.0)
    w.obey(Lru(sleep_level=1))
    start = w.cluster.start

    def refuse(action: Action) -> None:
        if isinstance(action, Sleep):
            w.cluster.tell(Done(action, "needs 40 GiB of RAM, 12 GiB is free"))
        else:
            start(action)

    w.cluster.start = refuse
    w.use("a", "b")
    assert [type(action).__name__ for _, action in w.log] == [
        "Load", "Sleep", "Load", "Unload", "Load",
    ]  # fmt: skip
    assert w.cluster.finished == 2


def test_a_pinned_model_gets_no_further_copies_that_would_never_leave(world: type) -> None:
    policy = Lru(max_replicas=2, scale_waiting=1)
    w = overlapping(world, policy, "busy", gpus=2, more={"busy": {"pinned": True}})
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    w.cluster.run(100.0)
    assert sorted(w.residents()) == ["busy", "rare"]


@pytest.mark.parametrize("policy", ["lru:sleep_level=1", "ilp"])
def test_what_cannot_sleep_is_unloaded_and_counted_so(world: type, policy: str) -> None:
    """Triton and Ray Serve cannot put to sleep: a swap costs the whole load there."""

    def left(can_sleep: bool) -> tuple[str, float]:
        more = {"busy": {"can_sleep": can_sleep}}
        w = overlapping(world, make_policy(policy), "busy", more=more)
        w.cluster.run(100.0)
        w.cluster.submit("rare")
        w.cluster.run(100.0)
        gone = next(a for _, a in w.log if isinstance(a, Sleep | Unload))
        [load] = [at for at, a in w.log if isinstance(a, Load) and a.model == "rare"]
        return type(gone).__name__, load - 100.0

    assert left(True) == ("Sleep", pytest.approx(10.0 + 2 * 0.1, abs=1e-3))
    assert left(False) == ("Unload", pytest.approx(10.0 + 11.0, abs=1e-3))


def loading(host_gib: float = INF, **seconds: float) -> ConfiguredFacts:
    """How long each model takes to load; a wake from host RAM moves so many GiB a second."""
    stages = {name: Stages(s, 0.0, 0.0, 0.0, 0.0, 0.0) for name, s in seconds.items()}
    links = Links(INF, host_gib * GIB, 2, INF)
    return ConfiguredFacts(stages, default_links=links)


def busy_for(w: Any, model: str, seconds: float) -> None:
    """One request that takes so long, and a second for it to be under way."""
    w.cluster.submit(model, service_s=seconds)
    w.cluster.run(1.0)


def test_a_request_that_waits_longer_goes_first_though_its_swap_is_not_due_yet(
    world: type,
) -> None:
    """The other one waits for GPUs that are kept free, but for those only who came later."""
    facts = loading(busy=2.0, slow=100.0, fast=1.0)
    w = world(dict.fromkeys(("busy", "slow", "fast"), 40), [40], facts=facts, service_s=1.0)
    w.obey(Lru(swap_share=0.01)).cluster.submit("busy", service_s=50.0)
    w.cluster.at(10.0, partial(w.cluster.submit, "slow"))
    w.cluster.at(11.0, partial(w.cluster.submit, "fast"))
    w.cluster.run(1000.0)
    assert w.did(Load) == ["busy", "slow", "fast"]


def test_a_swap_costs_what_its_own_gpus_take(world: type) -> None:
    """The first GPU of the configuration is fast, but nobody ever leaves it."""
    facts = ConfiguredFacts(
        default_stages=Stages(10.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        by_node={"n0": FAST, "n1": Links(INF, INF, 2, 2 * GIB)},  # 20 s for 40 GiB
    )
    more = {"stays": {"pinned": True, "gpus_allowed": frozenset({"g0"})}}
    sizes = dict.fromkeys(("stays", "busy", "rare"), 40)
    w = world(sizes, [40, 40], nodes=[0, 1], facts=facts, more=more, service_s=3.0).obey(Lru())
    for k in range(400):
        w.cluster.at(2.9 * k, partial(w.cluster.submit, "busy"))
    w.cluster.run(200.0)
    w.cluster.submit("rare")
    w.cluster.run(200.0)
    [load] = [at for at, action in w.log if isinstance(action, Load) and action.model == "rare"]
    assert load == pytest.approx(200.0 + 30.0 + 31.0, abs=1e-3)


def test_who_wakes_is_expected_as_soon_as_it_wakes_not_loads(world: type) -> None:
    w = world({"a": 40, "rare": 40}, [40], facts=loading(20.0, a=90.0, rare=5.0), service_s=3.0)
    w.cluster.start(Sleep(*w.load("a g0"), 1, "test 1"))
    w.cluster.run(10.0)
    w.obey(Lru(sleep_level=1))
    w.cluster.submit("a")
    w.cluster.run(0.0)
    assert w.did(Wake)
    w.cluster.submit("rare")
    w.cluster.run(0.0)
    moves_s = 40 / 20
    wakes_s = sleeps_s = 0.1 + moves_s
    stays_s, loads_s = 4 * 2 * sleeps_s, 5.0 + moves_s
    told = w.policy.outlook(w.state, "rare")
    assert told.left_s == pytest.approx(wakes_s + stays_s + sleeps_s + loads_s, abs=1e-3)


def test_it_tells_who_waits_behind_whom(world: type) -> None:
    w = overlapping(world, Lru(swap_share=0.05), "busy", "late")
    w.cluster.run(12.0)  # `busy` is in its time slice; `late` waits from the start
    assert [copy.model for copy in w.state.instances.values()] == ["busy"]
    w.cluster.run(88.0)
    w.cluster.submit("rare")
    first, told = (w.policy.outlook(w.state, name) for name in ("late", "rare"))
    assert told.why == "waits behind late, which has waited longer and is next on g0"
    assert told.left_s == pytest.approx(first.left_s + 1.0 + 10.0)


def test_a_sleep_that_was_refused_because_requests_came_is_tried_again(world: type) -> None:
    """Only what lacked RAM is unloaded instead."""
    w = world({"a": 40, "b": 40}, [40], service_s=5.0)
    w.obey(Lru(sleep_level=1, drain_after_s=INF))
    w.use("a")
    start, refused = w.cluster.start, []

    def refuse(action: Action) -> None:
        if isinstance(action, Sleep) and not refused:
            refused.append(action)
            w.cluster.submit("a")  # just before the cluster looked at it
        start(action)

    w.cluster.start = refuse
    w.use("b", apart_s=100.0)
    assert refused
    assert [a for _, a in w.log if isinstance(a, Unload)] == []
    assert w.cluster.finished == 3


def test_nothing_is_learnt_from_a_drain_that_failed(world: type) -> None:
    w = overlapping(world, Lru(), "busy")
    w.cluster.run(100.0)
    w.cluster.submit("rare")
    start = w.cluster.start

    def fails(action: Action) -> None:
        if isinstance(action, Unload):
            done = Done(action, "it does not end", action.instance)
            w.cluster.at(w.cluster.now_s + 50.0, lambda: w.cluster.tell(done))
        elif isinstance(action, Load):
            w.cluster.tell(Done(action, "no room"))
        else:
            start(action)

    w.cluster.start = fails
    w.cluster.run(90.0)
    assert w.did(Unload)
    w.cluster.start = start
    told = w.policy.outlook(w.state, "rare")
    assert told.left_s == pytest.approx(1.0 + 10.0)
