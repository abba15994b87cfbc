"""What is refused, in which words; and that what is allowed is indeed allowed."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.control.rules import fits_nowhere, may_begin, never_fits, refusal
from modelium.core import Limits, Load, Model, Move, Phase, Remind, Sleep, Unload, Wake
from modelium.units import GIB

FREE = Limits()


def test_a_load_that_fits_is_allowed(books: Any) -> None:
    b = books(a=30, tp=Model("tp", 120 * GIB, gpus=2))
    assert refusal(b.state, Load("a", ("n0g0",)), FREE) == ""
    assert refusal(b.state, Load("tp", ("n0g0", "n0g1")), FREE) == ""


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Load("b", ("n0g0",)), "no model called 'b'."),
        (Load("tpp", ("n0g0",)), "no model called 'tpp'. Did you mean 'tp'?"),
        (Load("a", ("n0g2",)), "no working GPU called 'n0g2'. Did you mean 'n0g1'?"),
        (Load("a", ()), "a needs 1 different GPUs, got none"),
        (Load("a", ("n0g0", "n0g1")), "a needs 1 different GPUs, got n0g0, n0g1"),
        (Load("tp", ("n0g0", "n0g0")), "tp needs 2 different GPUs, got n0g0, n0g0"),
        (Load("tp", ("n0g0", "n0g0", "n0g1")), "tp needs 2 different GPUs, got n0g0, n0g0, n0g1"),
        (Load("tp", ("n0g0", "n1g0")), "tp needs its 2 GPUs on one node, got n0, n1"),
        (Load("bound", ("n0g1",)), "bound may not use n0g1, only n0g0, n1g0"),
        (Load("large", ("n0g0",)), "needs 90.0 GiB on n0g0, 80.0 GiB is free"),
        (Load("a", ("n0g0",), kv_bytes=60 * GIB), "needs 90.0 GiB on n0g0, 80.0 GiB is free"),
        (Unload("x"), "no instance called 'x'."),
        (Sleep("x"), "no instance called 'x'."),
        (Wake("x"), "no instance called 'x'."),
        (Move("x", ("n0g0",)), "no instance called 'x'."),
    ],
)
def test_wrong_names_places_and_sizes_are_refused_with_their_numbers(
    books: Any, action: Any, words: str
) -> None:
    bound = Model("bound", 8 * GIB, gpus_allowed=frozenset({"n1g0", "n0g0"}))
    b = books(a=30, large=90, tp=Model("tp", 120 * GIB, gpus=2), bound=bound)
    said = refusal(b.state, action, FREE)
    assert said == words or (words.endswith(".") and said.startswith(words))


def test_room_counts_what_is_about_to_be_freed(books: Any) -> None:
    b = books(a=60)
    copy = b.add("a", "n0g0")
    assert refusal(b.state, Load("a", ("n0g0",)), FREE) == (
        "needs 60.0 GiB on n0g0, 20.0 GiB is free"
    )
    b.state.change(copy, Phase.LEAVING)
    assert refusal(b.state, Load("a", ("n0g0",)), FREE) == ""


def test_a_lost_gpu_takes_no_load(books: Any) -> None:
    b = books(a=30)
    b.state.lose("n0g0")
    assert refusal(b.state, Load("a", ("n0g0",)), FREE).startswith("no working GPU called 'n0g0'")


def test_copies_are_counted_without_those_that_leave(books: Any) -> None:
    b = books(one=Model("one", GIB, max_replicas=1), s=Model("s", GIB, spread=True))
    one, s = b.add("one", "n0g0"), b.add("s", "n0g0")
    assert refusal(b.state, Load("one", ("n0g1",)), FREE) == "one has its 1 copies already"
    assert refusal(b.state, Load("s", ("n0g1",)), FREE) == (
        "s may have one copy per node; s#2 is on n0"
    )
    assert refusal(b.state, Load("s", ("n1g1",)), FREE) == ""
    b.state.change(one, Phase.LEAVING)
    b.state.change(s, Phase.LEAVING)
    assert refusal(b.state, Load("one", ("n0g1",)), FREE) == ""
    assert refusal(b.state, Load("s", ("n0g1",)), FREE) == ""


@pytest.mark.parametrize("most", [1, 2, 3])
def test_exactly_so_many_loads_may_be_under_way(books: Any, most: int) -> None:
    b = books(a=10)
    limits = Limits(loads_at_once=most, loads_at_once_per_gpu=9)
    for k in range(most):
        assert refusal(b.state, Load("a", ("n0g0",)), limits) == ""
        b.add("a", f"n0g{k % 2}", Phase.WAKING if k else Phase.LOADING)
    assert refusal(b.state, Load("a", ("n1g0",)), limits) == (
        f"{most} loads are under way, {most} allowed"
    )


def test_a_gpu_loads_one_at_a_time_unless_told_otherwise(books: Any) -> None:
    b = books(a=10, tp=Model("tp", GIB, gpus=2))
    b.add("tp", "n0g0 n0g1", Phase.LOADING)
    assert refusal(b.state, Load("a", ("n0g1",)), FREE) == (
        "n0g1 is loading already, 1 allowed at a time"
    )
    assert refusal(b.state, Load("a", ("n1g0",)), FREE) == ""
    assert refusal(b.state, Load("a", ("n0g1",)), Limits(loads_at_once_per_gpu=2)) == ""


@pytest.mark.parametrize("verb", [Unload, Sleep])
def test_what_may_not_leave_is_refused(books: Any, verb: Any) -> None:
    b = books(a=10, pin=Model("pin", GIB, pinned=True), m=Model("m", GIB, min_replicas=1))
    busy = b.add("a", "n0g0", running=2, waiting=3).id
    loading = b.add("a", "n0g0", Phase.LOADING).id
    pinned, least = b.add("pin", "n0g0").id, b.add("m", "n0g0").id
    assert refusal(b.state, verb(busy), FREE) == f"{busy} is busy with 5 requests"
    assert refusal(b.state, verb(busy, drain=True), FREE) == ""
    assert refusal(b.state, verb(loading, drain=True), FREE) == f"{loading} is loading"
    assert refusal(b.state, verb(pinned, drain=True), FREE) == "pin is pinned"
    assert refusal(b.state, verb(least), FREE) == "m keeps at least 1 copies, it has 1"
    asleep = b.add("m", "n0g1", Phase.ASLEEP)
    assert refusal(b.state, verb(least), FREE) != ""  # a sleeper does not count
    b.state.change(asleep, Phase.WAKING)
    assert refusal(b.state, verb(least), FREE) == ""


def test_the_minimum_residency_ends_on_time(books: Any) -> None:
    b = books(a=10)
    copy = b.add("a", "n0g0", ready_since_s=100.0).id
    limits = Limits(min_residency_s=60.0)
    b.now_s = 159.0
    for action in (Unload(copy), Sleep(copy), Move(copy, ("n0g1",))):
        assert refusal(b.state, action, limits) == (
            f"{copy} is ready for 59.0 s only, it stays at least 60.0 s"
        )
    b.now_s = 160.0
    assert refusal(b.state, Unload(copy), limits) == ""


def test_sleep_needs_host_memory_at_level_1_only(books: Any) -> None:
    b = books(a=60)
    first, second = b.add("a", "n0g0"), b.add("a", "n0g1")
    assert refusal(b.state, Sleep(first.id, 1), FREE) == ""
    b.state.change(first, Phase.SUSPENDING, host_bytes=60 * GIB, sleep_level=1)
    assert refusal(b.state, Sleep(second.id, 1), FREE) == (
        f"{second.id} needs 60.0 GiB of n0's RAM to sleep, 40.0 GiB is free"
    )
    assert refusal(b.state, Sleep(second.id, 2), FREE) == ""
    assert refusal(b.state, Sleep(second.id, 0), FREE) == "sleep level 0 is neither 1 nor 2"
    b.state.change(first, Phase.ASLEEP)
    assert refusal(b.state, Sleep(first.id, 1), FREE) == f"{first.id} is asleep"
    assert refusal(b.state, Unload(first.id), FREE) == ""


def test_what_cannot_sleep_is_refused_it_at_any_level(books: Any) -> None:
    b = books(a=Model("a", 60 * GIB, can_sleep=False))
    copy = b.add("a", "n0g0")
    for level in (1, 2):
        assert refusal(b.state, Sleep(copy.id, level), FREE) == (
            "a cannot be put to sleep, only unloaded: what runs it has no sleep mode"
        )
    assert refusal(b.state, Unload(copy.id), FREE) == ""


def test_a_wake_needs_the_room_that_sleep_gave_back(books: Any) -> None:
    b = books(a=60, b=25)
    copy = b.add("a", "n0g0", Phase.ASLEEP)
    assert refusal(b.state, Wake(copy.id), FREE) == ""
    b.add("b", "n0g0")  # 80 - 1 - 25 = 54, and 59 more are needed
    assert refusal(b.state, Wake(copy.id), FREE) == "needs 59.0 GiB on n0g0, 54.0 GiB is free"
    ready = b.add("b", "n0g1").id
    assert refusal(b.state, Wake(ready), FREE) == f"{ready} is ready, not asleep"


@given(
    st.lists(st.sampled_from(["n0g0", "n0g1", "n1g0", "n0g0 n0g1"]), max_size=6),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 2),
)
def test_a_load_may_begin_if_there_is_a_gpu_where_it_would_not_be_refused(
    books: Any, coming: list[str], lost: bool, at_once: int, per_gpu: int
) -> None:
    b = books(tiny=0)
    for gpus in coming:
        b.add("tiny", gpus, Phase.LOADING)
    if lost:
        b.state.lose("n1g1")
    limits = Limits(loads_at_once=at_once, loads_at_once_per_gpu=per_gpu)
    fine = {g for g in b.state.all_gpus if not refusal(b.state, Load("tiny", (g,)), limits)}
    assert may_begin(b.state, limits) == bool(fine)
    for gpus in combinations(b.state.all_gpus, 2):
        assert may_begin(b.state, limits, gpus) == (not fine.isdisjoint(gpus))


def test_a_move_obeys_place_room_slots_and_spread(books: Any) -> None:
    b = books(a=60, s=Model("s", GIB, spread=True))
    copy = b.add("a", "n0g0").id
    assert refusal(b.state, Move(copy, ("n0g1",)), FREE) == ""
    assert refusal(b.state, Move(copy, ("n0g0",)), FREE) == f"{copy} is on n0g0 already"
    assert "different GPUs" in refusal(b.state, Move(copy, ("n0g1", "n1g0")), FREE)
    b.add("a", "n0g1", Phase.LOADING)
    assert "needs 60.0 GiB" in refusal(b.state, Move(copy, ("n0g1",)), FREE)
    first, second = b.add("s", "n0g0").id, b.add("s", "n1g0").id
    assert refusal(b.state, Move(first, ("n1g1",)), FREE) == (
        f"s may have one copy per node; {second} is on n1"
    )
    assert refusal(b.state, Move(second, ("n1g1",)), FREE) == ""  # within its own node


def test_a_reminder_is_always_allowed(books: Any) -> None:
    assert refusal(books(a=1).state, Remind(5.0), FREE) == ""


def test_a_model_that_can_never_run_is_told_why(books: Any) -> None:
    b = books(ok=80, large=81, wide=Model("wide", 240 * GIB, gpus=3), pair=Model("p", 160 * GIB))
    assert never_fits(b.state, "ok") == ""
    assert never_fits(b.state, "large") == (
        "large needs 81.0 GiB on a GPU; the largest GPU here offers 80.0 GiB. "
        "It can never run here."
    )
    assert never_fits(b.state, "wide") == (
        "wide needs 80.0 GiB on each of 3 GPUs of one node; the largest GPU here offers 80.0 GiB "
        "and no node has 3 that large. It can never run here."
    )


def test_what_others_hold_for_now_is_no_reason_for_never(books: Any) -> None:
    b = books(a=60)
    for gpu in b.state.all_gpus:
        b.state.resize(gpu, 10 * GIB)
    assert fits_nowhere(b.state, "a") == (
        "a needs 60.0 GiB on a GPU; the largest GPU here offers 10.0 GiB"
    )
    assert never_fits(b.state, "a", dict.fromkeys(b.state.all_gpus, 80 * GIB)) == ""


def test_a_bound_model_stays_on_its_gpus_and_has_to_fit_there(books: Any) -> None:
    only = frozenset({"n0g0", "n1g0"})
    b = books(
        a=Model("a", 30 * GIB, gpus_allowed=only),
        large=Model("large", 90 * GIB, gpus_allowed=only),
        pair=Model("pair", 30 * GIB, gpus=2, gpus_allowed=only),
        free=30,
    )
    assert refusal(b.state, Load("a", ("n1g0",)), FREE) == ""
    assert refusal(b.state, Load("free", ("n1g1",)), FREE) == ""
    copy = b.add("a", "n0g0")
    words = "a may not use n0g1, only n0g0, n1g0"
    assert refusal(b.state, Move(copy.id, ("n0g1",)), FREE) == words
    assert refusal(b.state, Move(copy.id, ("n1g0",)), FREE) == ""
    assert never_fits(b.state, "a") == ""
    assert fits_nowhere(b.state, "large") == (
        "large needs 90.0 GiB on a GPU; it may use n0g0, n1g0 only, the largest of which offers"
        " 80.0 GiB"
    )
    assert "and no node has 2 that large" in fits_nowhere(b.state, "pair")
    b.state.lose("n0g0")
    assert fits_nowhere(b.state, "a") == ""
    b.state.lose("n1g0")
    assert "it may use n0g0, n1g0 only, none of which works now" in fits_nowhere(b.state, "a")
