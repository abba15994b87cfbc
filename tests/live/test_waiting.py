"""The waiting room against a slow and obvious one, and against what fairness means."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelium.live.requests.interface import RefusedError, Request
from modelium.live.requests.queue import Entry, RequestQueue

MODELS, ORGANIZATIONS = ("a", "b"), ("x", "y", "z")
LIMIT = 8


class Obvious:
    """All that wait, in one list; whose turn it is is found by looking at everything."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.turns: list[tuple[str, int, str]] = []
        """(model, priority, organization) that wait, next turn first."""

    def put(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._keep_turns(entry)

    def remove(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self._keep_turns(entry)

    def order(self, model: str) -> list[Entry]:
        """Who is served when, if nobody comes or leaves."""
        waiting = [e for e in self.entries if e.request.model == model]
        served, turns = [], list(self.turns)
        while waiting:
            top = max(e.request.priority for e in waiting)
            whose = next(t for t in turns if t[:2] == (model, top) and any(map(t, waiting)))
            served.append(min(filter(whose, waiting), key=_came))
            waiting.remove(served[-1])
            turns = [t for t in turns if t != whose] + [whose]
        return served

    def serve(self, entry: Entry) -> None:
        whose = Turn(entry)
        self.turns = [t for t in self.turns if t != whose] + [whose]
        self.remove(entry)

    def _keep_turns(self, entry: Entry) -> None:
        whose = Turn(entry)
        if not any(map(whose, self.entries)):
            self.turns = [t for t in self.turns if t != whose]
        elif whose not in self.turns:
            self.turns.append(whose)


class Turn(tuple[str, int, str]):
    """(model, priority, organization); called with an entry, whether that is one of it."""

    def __new__(cls, entry: Entry) -> Turn:
        request = entry.request
        return super().__new__(cls, (request.model, request.priority, request.organization))

    def __call__(self, entry: Entry) -> bool:
        return Turn(entry) == self


def _came(entry: Entry) -> tuple[float, int]:
    return entry.request.arrival_s, entry.number


class Rooms(RuleBasedStateMachine):
    """Both rooms hear the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now_s = 0.0
        self.room = RequestQueue(lambda: self.now_s, LIMIT)
        self.plain = Obvious()

    def teardown(self) -> None:
        self.loop.close()

    @rule(
        model=st.sampled_from(MODELS),
        organization=st.sampled_from(ORGANIZATIONS),
        priority=st.integers(-1, 1),
        wait_s=st.integers(0, 9),
        retried=st.booleans(),
    )
    def enter(
        self, model: str, organization: str, priority: int, wait_s: int, retried: bool
    ) -> None:
        request = Request(model, organization=organization, priority=priority)
        request.retries = int(retried)
        request.arrival_s = self.now_s - 2 * retried
        full = sum(e.request.model == model for e in self.plain.entries) >= LIMIT

        async def enter() -> Entry:
            return self.room.enter(request, self.now_s + wait_s, 7.0)

        if full and not retried:
            with pytest.raises(RefusedError) as refused:
                self.loop.run_until_complete(enter())
            assert (refused.value.status, refused.value.retry_after_s) == (429, 7.0)
        else:
            self.plain.put(self.loop.run_until_complete(enter()))

    @rule(model=st.sampled_from(MODELS))
    def next(self, model: str) -> None:
        order = self.plain.order(model)
        first, entry = self.room.first(model), self.room.next(model)
        assert first is entry
        assert entry is (order[0] if order else None)
        if entry is not None:
            self.plain.serve(entry)

    @precondition(lambda self: self.plain.entries)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.plain.entries))
        self.room.leave(entry)
        self.room.leave(entry)
        assert self.room.position(entry) == 0
        self.plain.remove(entry)

    @rule(more_s=st.integers(0, 5))
    def time_passes(self, more_s: int) -> None:
        self.now_s += more_s
        late = self.room.expire(self.now_s)
        obvious = [e for e in self.plain.entries if e.deadline_s <= self.now_s]
        assert late == sorted(obvious, key=lambda e: (e.deadline_s, e.number))
        for entry in late:
            self.plain.remove(entry)

    @invariant()
    def all_is_told_alike(self) -> None:
        entries = self.plain.entries
        assert set(self.room.models()) == {e.request.model for e in entries}
        expected = min((e.deadline_s for e in entries), default=float("inf"))
        assert self.room.next_deadline_s() == expected
        for model in MODELS:
            order = self.plain.order(model)
            assert self.room.waiting(model) == len(order)
            assert [self.room.position(e) for e in order] == list(range(1, len(order) + 1))
            oldest_s = min((e.request.arrival_s for e in order), default=self.now_s)
            assert self.room.oldest_wait_s(model) == self.now_s - oldest_s


TestRooms = Rooms.TestCase
TestRooms.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@contextmanager
def filled(*organizations: str) -> Iterator[RequestQueue]:
    """A room in which one request of each of these waits, in this order."""
    room = RequestQueue(lambda: 0.0, 10_000)

    async def enter() -> None:
        for organization in organizations:
            room.enter(Request("m", organization=organization), 1.0)

    asyncio.run(enter())
    yield room


@given(st.lists(st.sampled_from(ORGANIZATIONS), min_size=1, max_size=60))
def test_between_two_turns_of_one_everybody_else_who_waits_has_one(names: list[str]) -> None:
    with filled(*names) as room:
        served = []
        while entry := room.next("m"):
            served.append(entry.request.organization)
    for name in set(names):
        turns = [at for at, one in enumerate(served) if one == name]
        for begin, end in pairwise(turns):
            between = served[begin + 1 : end]
            still = set(served[end:]) - {name}
            assert still <= set(between)
            assert len(between) == len(set(between))


def test_a_crowd_does_not_hold_up_a_single_caller() -> None:
    with filled(*["crowd"] * 1000, "single") as room:
        served = [room.next("m") for _ in range(2)]
    assert [e.request.organization for e in served if e] == ["crowd", "single"]


def test_deadlines_of_those_who_left_are_forgotten() -> None:
    room = RequestQueue(lambda: 0.0, 10)

    async def pass_through() -> None:
        room.enter(Request("m"), 1.0)  # keeps its place at the front of the heap
        for _ in range(10_000):
            room.leave(room.enter(Request("m"), 600.0))

    asyncio.run(pass_through())
    assert len(room._deadlines) < 300
    assert room.next_deadline_s() == 1.0
