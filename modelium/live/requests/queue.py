"""The waiting room: requests that have no engine yet, in one fair queue per model.

Order within a model: higher priority first; then organizations in turn, one request each (round
robin, as deficit round robin with equal costs); within an organization, first come first served.
Nobody saves up turns while it has nothing to ask. Queues are per model, so requests for one model
are served together however they came (collation).
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from modelium.live.requests.interface import RefusedError, Request, Seat

FEW = 64
"""Deadlines of requests that have left are not cleared away below this number."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request that waits; `future` becomes its seat."""

    request: Request
    deadline_s: float
    number: int
    future: asyncio.Future[Seat] = field(repr=False)
    gone: bool = False


def _came(entry: Entry) -> tuple[float, int]:
    """When it came: one that is sent again, because its engine was lost, goes before later ones."""
    return entry.request.arrival_s, entry.number


Lane = list[Entry]
"""One organization's requests, as they came."""


class Queue:
    """The requests that wait for one model."""

    __slots__ = ("_classes", "size")

    def __init__(self) -> None:
        self.size = 0
        # Priority to organization to its lane; organizations are in the order of their turns.
        self._classes: dict[int, OrderedDict[str, Lane]] = {}

    def put(self, entry: Entry) -> None:
        """O(log n)."""
        lanes = self._classes.setdefault(entry.request.priority, OrderedDict())
        insort(lanes.setdefault(entry.request.organization, []), entry, key=_came)
        self.size += 1

    def first(self) -> Entry:
        """Whose turn it is."""
        lanes = self._classes[max(self._classes)]
        return next(iter(lanes.values()))[0]

    def remove(self, entry: Entry) -> None:
        """O(log n), wherever it stands."""
        priority, organization = entry.request.priority, entry.request.organization
        lanes = self._classes[priority]
        lane = lanes[organization]
        del lane[bisect_left(lane, _came(entry), key=_came)]
        self.size -= 1
        if not lane:
            del lanes[organization]
        if not lanes:
            del self._classes[priority]

    def turn(self, entry: Entry) -> None:
        """An organization has had its turn with `entry`: the next one's comes."""
        self.remove(entry)
        lanes = self._classes.get(entry.request.priority, OrderedDict())
        if entry.request.organization in lanes:
            lanes.move_to_end(entry.request.organization)

    def position(self, entry: Entry) -> int:
        """Place from 1, if nobody comes or leaves; O(log n + organizations)."""
        own, place = entry.request.organization, 1
        for priority, lanes in self._classes.items():
            if priority > entry.request.priority:
                place += sum(map(len, lanes.values()))
        lanes = self._classes[entry.request.priority]
        rounds = bisect_left(lanes[own], _came(entry), key=_came)
        before = True
        for organization, lane in lanes.items():
            before = before and organization != own
            place += min(len(lane), rounds + before)
        return place

    def oldest_s(self) -> float:
        """When the one came that waits longest."""
        lanes = (lane for lanes in self._classes.values() for lane in lanes.values())
        return min(lane[0].request.arrival_s for lane in lanes)


class RequestQueue:
    """Bounded queues by model, and the deadlines of all who wait."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        """`limit` is per model; times are seconds by `clock`."""
        self._clock = clock
        self.limit = limit
        self._queues: dict[str, Queue] = {}
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._left = 0
        """How many of the deadlines belong to requests that have left."""
        self._numbers = count()

    def enter(
        self, request: Request, deadline_s: float, retry_after_s: float | None = None
    ) -> Entry:
        """Queue a request until `deadline_s`. Raises RefusedError (429) if the queue is full.

        A request that is sent again was let in before, and is let in again.
        """
        waiting = self.waiting(request.model)
        if waiting >= self.limit and not request.retries:
            why = f"{waiting} requests wait for {request.model} already"
            raise RefusedError(429, why, retry_after_s)
        future = asyncio.get_running_loop().create_future()
        entry = Entry(request, deadline_s, next(self._numbers), future)
        self._queues.setdefault(request.model, Queue()).put(entry)
        heapq.heappush(self._deadlines, (deadline_s, entry.number, entry))
        return entry

    def first(self, model: str) -> Entry | None:
        """Whose turn it is."""
        queue = self._queues.get(model)
        return queue.first() if queue else None

    def next(self, model: str) -> Entry | None:
        """Take out whose turn it is."""
        entry = self.first(model)
        if entry is not None:
            self._queues[model].turn(entry)
            self._gone(entry)
        return entry

    def leave(self, entry: Entry) -> None:
        """A request waits no more; no matter if it did not."""
        if not entry.gone:
            self._queues[entry.request.model].remove(entry)
            self._gone(entry)

    def position(self, entry: Entry) -> int:
        """Place in the queue, from 1; 0 if it does not wait any more."""
        return 0 if entry.gone else self._queues[entry.request.model].position(entry)

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        queue = self._queues.get(model)
        return queue.size if queue else 0

    def oldest_wait_s(self, model: str) -> float:
        """How long the one has waited that waits longest; 0 if none does."""
        queue = self._queues.get(model)
        return self._clock() - queue.oldest_s() if queue else 0.0

    def models(self) -> Iterator[str]:
        """Models that somebody waits for."""
        return iter(list(self._queues))

    def next_deadline_s(self) -> float:
        """When the next request has waited too long; inf if none waits."""
        while self._deadlines and self._deadlines[0][2].gone:
            heapq.heappop(self._deadlines)
            self._left -= 1
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expire(self, now_s: float) -> list[Entry]:
        """Take out all that have waited too long."""
        late = []
        while self.next_deadline_s() <= now_s:
            entry = self._deadlines[0][2]
            self.leave(entry)
            late.append(entry)
        return late

    def _gone(self, entry: Entry) -> None:
        entry.gone = True
        if not self._queues[entry.request.model].size:
            del self._queues[entry.request.model]
        self._left += 1
        if self._left > max(FEW, len(self._deadlines) // 2):
            self._deadlines = [row for row in self._deadlines if not row[2].gone]
            heapq.heapify(self._deadlines)
            self._left = 0
