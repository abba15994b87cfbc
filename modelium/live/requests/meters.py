"""What requests do to the books: meters of each instance, demand of each model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from modelium.live.requests.queue import RequestQueue

Clock = Callable[[], float]


@dataclass(slots=True)
class LiveMeters:
    """What one instance did; times are seconds of the run."""

    clock: Clock
    queued: Callable[[], int]
    """Its share of the requests that wait though its model is ready."""
    outstanding: int = 0
    """Requests at the engine."""
    served: int = 0
    last_used_s: float = 0.0
    idle_since_s: float = 0.0
    _share_s: float = 0.0
    """Integral of 1 / outstanding over the busy time: what each request there takes of it."""
    _since_s: float = 0.0

    @property
    def running(self) -> int:
        return self.outstanding

    @property
    def waiting(self) -> int:
        return self.queued()

    @property
    def busy(self) -> bool:
        return self.outstanding > 0

    def begin(self) -> float:
        """A request was sent to the engine; returns what `end` wants to know of it."""
        self._integrate()
        self.last_used_s = self.clock()
        self.outstanding += 1
        self.served += 1
        return self._share_s

    def end(self, begun: float) -> tuple[bool, float]:
        """A request is over: whether the instance fell idle, and the request's share of its time.

        Requests that were there together share the time alike; the shares of all add up to the
        time that the instance was busy.
        """
        self._integrate()
        self.outstanding -= 1
        if not self.outstanding:
            self.idle_since_s = self.clock()
        return not self.outstanding, self._share_s - begun

    def _integrate(self) -> None:
        now_s = self.clock()
        if self.outstanding:
            self._share_s += (now_s - self._since_s) / self.outstanding
        self._since_s = now_s


@dataclass(slots=True)
class LiveDemand:
    """What users asked of one model."""

    model: str
    clock: Clock
    queue: RequestQueue
    ready: Callable[[str], int]
    """How many instances of a model are ready."""
    window_s: float = 60.0
    arrivals: int = 0
    last_arrival_s: float = -math.inf
    prompt_tokens: int = 0
    output_tokens: int = 0
    _rate: float = field(default=0.0)

    def arrive(self) -> None:
        """A request has come."""
        now_s = self.clock()
        self._rate = self._faded(now_s) + 1 / self.window_s
        self.arrivals += 1
        self.last_arrival_s = now_s

    @property
    def waiting(self) -> int:
        return 0 if self.ready(self.model) else self.queue.waiting(self.model)

    @property
    def oldest_wait_s(self) -> float:
        return 0.0 if self.ready(self.model) else self.queue.oldest_wait_s(self.model)

    @property
    def request_rate_per_s(self) -> float:
        return self._faded(self.clock())

    def _faded(self, now_s: float) -> float:
        if not self._rate:
            return 0.0
        return self._rate * math.exp(-(now_s - self.last_arrival_s) / self.window_s)
