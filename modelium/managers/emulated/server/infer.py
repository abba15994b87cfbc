"""Dynamic batching of whole requests in real time, with pipeline stages and several servers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from modelium.managers.emulated.server.spec import Infer


class Job:
    """One request: some items to be answered together."""

    __slots__ = ("arrival_s", "done", "items", "tokens")

    def __init__(self, items: int, tokens: int, done: Callable[[], None]) -> None:
        self.items, self.tokens, self.done = items, tokens, done
        self.arrival_s = 0.0


class Inferrer:
    """One engine: a batch of b items with w tokens takes `latency_s[k][b-1] + per_token_s*w`."""

    def __init__(
        self,
        spec: Infer,
        speed: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.max_batch = min(len(row) for row in spec.latency_s)
        self.waiting: deque[Job] = deque()
        self._waiting_items = 0
        self.running: set[Job] = set()
        self.finished = self.items = self.batches = 0
        self.paused = False
        self.ended: Callable[[], None] = lambda: None
        """Called after each batch; it may pause."""
        self._speed, self._loop, self._clock = speed, loop, clock
        self._free_s = [[0.0] * len(spec.latency_s) for _ in range(spec.servers)]
        """When each stage of each server is free."""
        self._timer: asyncio.Handle | None = None

    def put(self, job: Job) -> None:
        """Queue a job of at most `max_batch` items."""
        job.arrival_s = self._clock()
        self.waiting.append(job)
        self._waiting_items += job.items
        self._go_on(0.0)

    def drop(self, job: Job) -> None:
        """Forget a job that nobody waits for; one in a batch is computed all the same."""
        if job in self.waiting:
            self.waiting.remove(job)
            self._waiting_items -= job.items

    def pause(self, *, forget: bool) -> None:
        """Start no further batch; those under way end (`forget` changes nothing here)."""
        self.paused = True

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._go_on(0.0)

    def _go_on(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Requests that arrive in one turn of the loop meet in one batch.
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """Start what can be started; come back when more can."""
        self._timer = None
        while self.waiting and not self.paused:
            now_s = self._clock()
            stages = min(self._free_s, key=lambda free: free[0])
            full = self._waiting_items >= self.max_batch
            ready_s = self.waiting[0].arrival_s + self.spec.max_delay_s / self._speed
            wait_s = max(stages[0], now_s if full else ready_s) - now_s
            if wait_s > 0:
                self._go_on(wait_s)
                return
            self._start(stages, now_s)

    def _start(self, stages: list[float], now_s: float) -> None:
        batch, items = [], 0
        while self.waiting and items + self.waiting[0].items <= self.max_batch:
            job = self.waiting.popleft()
            batch.append(job)
            items += job.items
        self._waiting_items -= items
        tokens = sum(job.tokens for job in batch)
        end_s = now_s
        for k, row in enumerate(self.spec.latency_s):
            work_s = row[items - 1] + self.spec.per_token_s * tokens
            end_s = stages[k] = max(end_s, stages[k]) + work_s / self._speed
        self.batches += 1
        self.running.update(batch)
        wait_s = end_s + self.spec.fixed_s / self._speed - now_s
        if wait_s > 0:
            self._loop.call_later(wait_s, self._end, batch, items)
        else:
            self._end(batch, items)

    def _end(self, batch: list[Job], items: int) -> None:
        self.running.difference_update(batch)
        self.finished += len(batch)
        self.items += items
        for job in batch:
            job.done()
        self.ended()
