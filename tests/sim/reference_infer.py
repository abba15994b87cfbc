"""Lanes of batch engines in plain Python: one list of who waits, one event at a time.

This is the text that `modelium.sim.kernel.infer` must equal to the bit. Who goes next is found by
sorting all that wait; floats are added in the order in which a batch passes its stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import inf, nan
from typing import Protocol

from modelium.sim.spec import Infer

NEVER = 2**63 - 1


@dataclass(eq=False)
class Job:
    """A request, as a lane sees it."""

    id: int
    tokens: int
    cls: int
    arrival_s: float
    finish_ps: int = -1
    answer_s: float = nan


class Member(Protocol):
    """An instance of the lane."""

    spec: Infer
    gpus: tuple[str, ...]


@dataclass(eq=False)
class ReferenceLane:
    """What executes batches for its members, in turns. Call `step` at `due_ps`."""

    stages: int
    servers: int
    gpus: tuple[str, ...]
    members: list[Member] = field(default_factory=list)
    queue: list[tuple[Member, Job]] = field(default_factory=list)
    """Everything that is in no batch yet, in the order in which it came."""
    look_ps: int = NEVER
    """When to look again whether a batch can begin."""
    worked: list[tuple[str, float, float, float]] = field(default_factory=list)
    """GPU, begin, end and share of it: work that was begun."""

    def __post_init__(self) -> None:
        self.clock = [0.0] * max(self.stages, self.servers)
        self.flying: list[list[tuple[Member, Job]]] = [[] for _ in range(self.servers)]

    # What happens to it

    def put(self, member: Member, job: Job, now_s: float, slow: int, known: bool) -> None:
        """`known`: nothing can come before it any more, so that its finish is known now."""
        if known and not self.queue:
            self._execute(member, [job], now_s, slow)
            return
        self.queue.append((member, job))
        self.look_ps = min(self.look_ps, ps(now_s))

    def drop(self, member: Member) -> list[Job]:
        """The member is gone; what its batches have taken of the clocks stays taken."""
        everybody = [*self.queue, *chain.from_iterable(self.flying)]
        lost = [job for owner, job in everybody if owner is member]
        self.queue = [(owner, job) for owner, job in self.queue if owner is not member]
        for k, flight in enumerate(self.flying):
            self.flying[k] = [(owner, job) for owner, job in flight if owner is not member]
        return lost

    def step(self, now: int, slow: Callable[[Member], int]) -> list[tuple[Member, Job]]:
        done = [pair for flight in self.flying for pair in flight if pair[1].finish_ps <= now]
        for k, flight in enumerate(self.flying):
            self.flying[k] = [pair for pair in flight if pair not in done]
        self.look_ps = NEVER
        while self.queue:
            free_s = min(self.clock[: self.servers])
            if ps(free_s) > now:
                self.look_ps = ps(free_s)
                break
            ready = [batch for batch in self._batches() if batch.complete_ps <= now]
            if not ready:
                self.look_ps = min(batch.complete_ps for batch in self._batches())
                break
            best = min(ready, key=lambda batch: (batch.jobs[0].cls, batch.jobs[0].arrival_s))
            self.queue = [pair for pair in self.queue if pair[1] not in best.jobs]
            self._execute(best.member, best.jobs, max(now / 1e12, free_s), slow(best.member))
        return done

    # What can be read

    @property
    def due_ps(self) -> int:
        flying = [job.finish_ps for flight in self.flying for _, job in flight]
        return min([self.look_ps, *flying])

    def last_free_s(self) -> float:
        """When a new request's last stage would be free."""
        return min(self.clock[: self.servers]) if self.servers > 1 else self.clock[self.stages - 1]

    def predict(self, member: Member, tokens: int, now_s: float, slow: int) -> float:
        """When a request put now would be answered, as admission sees it."""
        spec = member.spec
        t = now_s
        for k in range(self.stages):
            free_s = min(self.clock) if self.servers > 1 else self.clock[k]
            t = max(t, free_s) + _stage_s(spec, k, 1, tokens, slow)
        most = len(spec.latency_s[0])
        ahead = len(self.queue) // (most * self.servers)
        return t + ahead * _stage_s(spec, 0, most, 0, slow) + spec.fixed_s

    # Batches

    def _batches(self) -> Iterator[_Batch]:
        """What each member would send next."""
        for member in self.members:
            mine = [job for owner, job in self.queue if owner is member]
            if not mine:
                continue
            mine.sort(key=lambda job: job.cls)
            size = len(member.spec.latency_s[0])
            heads = {job.cls: job.arrival_s for job in reversed(mine)}
            wait_s = member.spec.max_delay_s if len(mine) < size else -inf
            full = -1 if wait_s == -inf else ps(min(heads.values()) + wait_s)
            yield _Batch(member, mine[:size], full)

    def _execute(self, member: Member, jobs: list[Job], now_s: float, slow: int) -> None:
        size, tokens = len(jobs), sum(job.tokens for job in jobs)
        server, t = 0, now_s
        if self.servers > 1:
            server = self.clock.index(min(self.clock))
        for k in range(self.stages):
            at = server if self.servers > 1 else k
            begin = max(t, self.clock[at])
            t = self.clock[at] = begin + _stage_s(member.spec, k, size, tokens, slow)
            self._book(k, begin, t)
        for job in jobs:
            job.finish_ps = ps(t)
            job.answer_s = t + member.spec.fixed_s
            self.flying[server].append((member, job))

    def _book(self, stage: int, begin_s: float, end_s: float) -> None:
        """Each stage has its share of the GPUs, each server its share of all."""
        n = len(self.gpus)
        if self.servers > 1:
            self.worked += [(gpu, begin_s, end_s, 1 / self.servers) for gpu in self.gpus]
            return
        first = stage * n // self.stages
        last = max(first + 1, (stage + 1) * n // self.stages)
        share = min(1.0, n / self.stages)
        self.worked += [(gpu, begin_s, end_s, share) for gpu in self.gpus[first:last]]


@dataclass(eq=False)
class _Batch:
    member: Member
    jobs: list[Job]
    complete_ps: int
    """When it may go: at once if it is full."""


def _stage_s(spec: Infer, stage: int, size: int, tokens: int, slow: int) -> float:
    t = spec.latency_s[stage][size - 1] + spec.per_token_s * tokens
    return t if slow == 1024 else t * slow / 1024


def ps(seconds: float) -> int:
    """Whole picoseconds."""
    return round(seconds * 1e12)
