"""The books: what is held, free and about to be free, at every change; tiers; snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.core import Phase, Tier
from modelium.units import GIB

PHASES = list(Phase)


def free(b: Any) -> list[int]:
    return [b.state.free_bytes(gpu) // GIB for gpu in b.state.all_gpus]


def freeing(b: Any) -> list[int]:
    return [b.state.freeing_bytes(gpu) // GIB for gpu in b.state.all_gpus]


def test_a_copy_is_charged_on_each_of_its_gpus_and_given_back(books: Any) -> None:
    b = books(a=30)
    copy = b.add("a", "n0g0 n0g1")
    assert free(b) == [50, 50, 80, 80]
    assert [c.id for c in b.state.instances_on("n0g1")] == ["a#1"]
    b.state.remove(copy)
    assert free(b) == [80] * 4
    assert not b.state.instances
    assert list(b.state.instances_of("a")) == list(b.state.instances_on("n0g0")) == []


def test_free_may_be_negative_while_a_load_waits_for_room(books: Any) -> None:
    b = books(a=60)
    leaving = b.add("a", "n0g0")
    b.state.change(leaving, Phase.LEAVING)
    b.add("a", "n0g0", Phase.LOADING)
    assert free(b)[0] == -40
    assert freeing(b)[0] == 60
    b.state.remove(leaving)
    assert (free(b)[0], freeing(b)[0]) == (20, 0)


def test_a_copy_that_goes_to_sleep_gives_back_all_but_what_its_process_keeps(books: Any) -> None:
    b = books(a=30)
    copy = b.add("a", "n0g0")
    b.state.change(copy, Phase.SUSPENDING, host_bytes=30 * GIB, sleep_level=1)
    assert (free(b)[0], freeing(b)[0]) == (50, 29)
    assert b.state.host_free_bytes("n0") == 70 * GIB
    b.state.change(copy, Phase.ASLEEP, bytes_per_gpu=GIB)
    assert (free(b)[0], freeing(b)[0]) == (79, 0)
    b.state.change(copy, Phase.READY, bytes_per_gpu=30 * GIB, host_bytes=0, sleep_level=0)
    assert (free(b)[0], b.state.host_free_bytes("n0")) == (50, 100 * GIB)


def test_ready_since_is_the_last_time_it_became_ready(books: Any) -> None:
    b = books(a=30)
    copy = b.add("a", "n0g0", Phase.LOADING, ready_since_s=float("inf"))
    b.now_s = 7.0
    b.state.change(copy, Phase.READY)
    b.now_s = 9.0
    b.state.change(copy, Phase.LEAVING)
    assert copy.ready_since_s == 7.0


def test_tiers_say_where_weights_are_and_where_a_load_would_read_them(books: Any) -> None:
    b = books(a=30)
    assert b.state.tier("a", "n0") is Tier.DISK
    b.state.ram["n0"].cache("a", 30 * GIB)
    assert b.state.tier("a", "n0") is Tier.HOST
    b.state.ram["n0"].drop("a")
    b.add("a", "n0g0")
    assert b.state.tier("a", "n0") is Tier.GPU
    assert b.state.source_tier("a", "n0") is Tier.DISK  # nothing copies from another GPU
    assert b.state.tier("a", "n1") is Tier.DISK
    b.add("a", "n1g0", Phase.ASLEEP, host_bytes=30 * GIB, sleep_level=1)
    assert b.state.tier("a", "n1") is b.state.source_tier("a", "n1") is Tier.HOST


def test_a_lost_gpu_is_absent_and_comes_back_in_its_old_place(books: Any) -> None:
    b = books(a=30)
    order = list(b.state.gpus)
    b.state.lose("n0g1")
    assert list(b.state.gpus) == [name for name in order if name != "n0g1"]
    b.state.regain("n0g1")
    assert list(b.state.gpus) == order


def test_a_snapshot_stands_still_and_costs_the_same(books: Any) -> None:
    b = books(a=30, b=20)
    b.hungry.append("b")
    copy = b.add("a", "n0g0", running=2)
    b.state.lose("n1g1")
    b.state.ram["n1"].cache("a", 30 * GIB)
    twin = b.state.snapshot()
    before = b.state.costs.load_s("a", ("n1g0",))
    b.now_s = 5.0
    b.state.remove(copy)
    b.state.regain("n1g1")
    b.state.ram["n1"].clear()
    b.hungry.clear()
    assert twin.now_s == 0.0
    assert list(twin.waiting_models()) == ["b"]
    assert twin.instances["a#1"].running == 2
    assert twin.instances["a#1"].busy
    assert "n1g1" not in twin.gpus
    assert twin.free_bytes("n0g0") == 50 * GIB
    assert twin.demand["a"].arrivals == 3
    assert twin.costs.load_s("a", ("n1g0",)) == before < b.state.costs.load_s("a", ("n1g0",))
    assert twin.limits == b.state.limits


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "change", "remove", "stick", "lose", "regain", "resize"]),
            st.integers(0, 9),
            st.sampled_from(PHASES),
            st.integers(0, 60),
            st.integers(0, 30),
        ),
        max_size=40,
    )
)
def test_after_any_changes_the_books_are_what_a_recount_gives(
    books: Any, steps: list[tuple[str, int, Phase, int, int]]
) -> None:
    b = books(a=30, b=20)
    copies: list[Any] = []
    sizes = dict.fromkeys(b.state.all_gpus, 80 * GIB)
    for verb, which, phase, gpu_gib, host_gib in steps:
        gpu = list(sizes)[which % 4]
        if verb == "lose":
            b.state.lose(gpu)
        elif verb == "regain":
            b.state.regain(gpu)
        elif verb == "resize":
            sizes[gpu] = (40 + gpu_gib) * GIB
            b.state.resize(gpu, sizes[gpu])
        elif verb == "add":
            gpus = ("n0g0", "n0g1", "n1g0", "n0g0 n0g1", "n1g1 n1g0")[which % 5]
            copies.append(b.add("ab"[which % 2], gpus, phase, bytes_per_gpu=gpu_gib * GIB))
        elif copies and verb == "remove":
            b.state.remove(copies.pop(which % len(copies)))
        elif copies and verb == "stick":
            b.state.stick(copies[which % len(copies)])
        elif copies:
            copy = copies[which % len(copies)]
            held = {"bytes_per_gpu": gpu_gib * GIB, "host_bytes": host_gib * GIB}
            b.state.change(copy, phase, **(held if which % 2 else {}))
    for gpu in b.state.all_gpus:
        here = [copy for copy in copies if gpu in copy.gpus]
        assert b.state.free_bytes(gpu) == sizes[gpu] - sum(c.bytes_per_gpu for c in here)
        going = [copy for copy in here if not copy.stuck]
        leaving = sum(c.bytes_per_gpu for c in going if c.phase is Phase.LEAVING)
        dozing = [c.bytes_per_gpu - GIB for c in going if c.phase is Phase.SUSPENDING]
        assert b.state.freeing_bytes(gpu) == leaving + sum(max(0, more) for more in dozing)
        assert {c.id for c in b.state.instances_on(gpu)} == {c.id for c in here}
    state = b.state
    coming = [copy for copy in copies if copy.phase in (Phase.LOADING, Phase.WAKING)]
    assert {copy.id for copy in state.coming()} == {copy.id for copy in coming}
    for gpu in state.all_gpus:
        assert state.coming_on(gpu) == sum(gpu in copy.gpus for copy in coming)
    may = [g for g in state.gpus if state.coming_on(g) < state.limits.loads_at_once_per_gpu]
    rooms = [(gpu, state.free_bytes(gpu) + state.freeing_bytes(gpu)) for gpu in may]
    assert list(state.rooms().items()) == rooms
    for node in b.state.nodes:
        pinned = sum(copy.host_bytes for copy in copies if copy.node == node)
        assert b.state.host_free_bytes(node) == 100 * GIB - pinned
    assert set(b.state.instances) == {copy.id for copy in copies}


GOES = (Phase.SUSPENDING, Phase.LEAVING)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "change", "correct", "stick", "remove"]),
            st.sampled_from(PHASES),
            st.integers(0, 40),
        ),
        max_size=40,
    )
)
def test_what_is_booked_is_the_sum_of_what_copies_hold_though_models_are_corrected(
    books: Any, steps: list[tuple[str, Phase, int]]
) -> None:
    """A model is found to keep more or less asleep while copies of it are on their way there."""
    b = books(a=30)
    copies: list[Any] = []
    for verb, phase, size in steps:
        copy = copies[size % len(copies)] if copies else None
        if verb == "correct":
            model = replace(b.state.models["a"], asleep_bytes=size * GIB)
            b.state.put_model(model, b.state.demand["a"])
        elif verb == "add" or copy is None:
            copies.append(b.add("a", "n0g0", phase))
        elif verb == "change":
            b.state.change(copy, phase, bytes_per_gpu=size * GIB)
        elif verb == "stick":
            b.state.stick(copy)
        else:
            b.state.remove(copy)
            copies.remove(copy)
        going = [copy for copy in copies if copy.phase in GOES and not copy.stuck]
        assert b.state.free_bytes("n0g0") == 80 * GIB - sum(c.bytes_per_gpu for c in copies)
        assert 0 <= b.state.freeing_bytes("n0g0") <= sum(c.bytes_per_gpu for c in going)
        assert b.state.freeing_bytes("n0g0") == sum(copy.gives_bytes for copy in copies)
    for copy in copies:
        b.state.remove(copy)
    assert (free(b), freeing(b)) == ([80] * 4, [0] * 4)
