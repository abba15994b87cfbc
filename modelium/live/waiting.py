"""The waiting room: requests that have no engine yet, in one fair queue per model.

Order within a model: higher priority first; then the organization that was served least lately;
then first come, first served. Queues are per model, so requests for one model are served together
however they came (collation).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from modelium.live.seats import RefusedError, Request, Seat


@dataclass(slots=True, eq=False)
class Entry:
    """One request that waits; `future` becomes its seat."""

    request: Request
    deadline_s: float
    number: int
    future: asyncio.Future[Seat] = field(repr=False)
    gone: bool = False


class WaitingRoom:
    """Bounded queues by model."""

    def __init__(self, clock: Callable[[], float], limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._queues: dict[str, OrderedDict[int, Entry]] = {}
        self._served: dict[str, int] = {}
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = count()

    def enter(
        self, request: Request, deadline_s: float, retry_after_s: float | None = None
    ) -> Entry:
        """Queue a request until `deadline_s`. Raises RefusedError (429) if the queue is full."""
        queue = self._queues.setdefault(request.model, OrderedDict())
        if len(queue) >= self._limit:
            why = f"{len(queue)} requests wait for {request.model} already"
            raise RefusedError(429, why, retry_after_s)
        future = asyncio.get_running_loop().create_future()
        entry = Entry(request, deadline_s, next(self._numbers), future)
        queue[entry.number] = entry
        heapq.heappush(self._deadlines, (deadline_s, entry.number, entry))
        return entry

    def leave(self, entry: Entry) -> None:
        """A request waits no more."""
        entry.gone = True
        queue = self._queues.get(entry.request.model, OrderedDict())
        queue.pop(entry.number, None)
        if not queue:
            self._queues.pop(entry.request.model, None)

    def first(self, model: str) -> Entry | None:
        """Whose turn it is."""
        queue = self._queues.get(model)
        return min(queue.values(), key=self._rank) if queue else None

    def next(self, model: str) -> Entry | None:
        """Take out whose turn it is."""
        entry = self.first(model)
        if entry is not None:
            self.leave(entry)
            name = entry.request.organization
            self._served[name] = self._served.get(name, 0) + 1
        return entry

    def _rank(self, entry: Entry) -> tuple[int, int, int]:
        request = entry.request
        return -request.priority, self._served.get(request.organization, 0), entry.number

    def position(self, entry: Entry) -> int:
        """Place in the queue, from 1."""
        queue = self._queues.get(entry.request.model, OrderedDict())
        rank = self._rank(entry)
        return 1 + sum(self._rank(other) < rank for other in queue.values())

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        return len(self._queues.get(model, ()))

    def oldest_wait_s(self, model: str) -> float:
        """How long the first of them has waited; 0 if none does."""
        queue = self._queues.get(model)
        if not queue:
            return 0.0
        return self._clock() - next(iter(queue.values())).request.arrival_s

    def models(self) -> Iterator[str]:
        """Models that somebody waits for."""
        return iter(list(self._queues))

    def next_deadline_s(self) -> float:
        """When the next request has waited too long; inf if none waits."""
        while self._deadlines and self._deadlines[0][2].gone:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def expire(self, now_s: float) -> list[Entry]:
        """Take out all that have waited too long."""
        late = []
        while self.next_deadline_s() <= now_s:
            entry = heapq.heappop(self._deadlines)[2]
            self.leave(entry)
            late.append(entry)
        return late
