"""What the gateway asks of the live cluster: a seat at an engine for each request.

    seat = await cluster.seat(request, told)     # waits while the model is loaded
    ... the gateway talks to seat.engine ...
    seat.finish("completed", prompt_tokens=12, output_tokens=64)

Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from modelium.errors import ModeliumError
from modelium.managers.engine import Engine

Outcome = Literal["completed", "refused", "failed", "cancelled"]
"""How a request ended; "refused": the engine found it wrong; "cancelled": its client went away."""
NOT_FOUND, CONFLICT, UNAVAILABLE = 404, 409, 503
"""HTTP's statuses of a `RefusedError`, by their names there. Source: RFC 9110, 15.5 and 15.6."""


@dataclass(slots=True)
class Request:
    """One request, as far as its place in the queue depends on it."""

    model: str
    id: str = ""
    organization: str = ""
    session: str = ""
    slo_class: str = ""
    priority: int = 0
    """Higher is served first."""
    prompt_tokens: int = 0
    """As guessed from the body until the engine says it."""
    output_tokens: int = 0
    """At most; 0 if the client set no limit."""
    deadline_s: float | None = None
    """How long it may wait for an engine; None: the cluster's default."""
    arrival_s: float = field(default=0.0)
    """Set by the cluster."""
    retries: int = 0
    """How often it was sent again, because its engine was lost before the answer began."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Where a request that has no engine yet stands; told now and then while it waits."""

    position: int
    """In its model's queue, from 1."""
    stage: str
    """What its model is doing: "queued", "process", "weights", ..."""
    share: float
    """Of the load that is done, 0 to 1, by the estimate."""
    left_s: float | None
    """Seconds until an engine is expected to be ready; None if nothing is under way."""


class RefusedError(ModeliumError):
    """A request that gets no engine; the gateway answers with `status` and `Retry-After`."""

    def __init__(self, status: int, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.status = status
        """404 unknown model, 429 queue full or limits, 503 no room in time, failed or stopping."""
        self.retry_after_s = retry_after_s


class Seat(Protocol):
    """A request's place at a ready engine, until exactly one of `finish` and `lost` is called."""

    @property
    def engine(self) -> Engine: ...
    @property
    def request(self) -> Request: ...
    @property
    def cut(self) -> str:
        """Why the cluster ended the engine while the request was there; empty if it did not."""

    def when_cut(self, hear: Callable[[], object]) -> None:
        """Call this when the cluster ends the engine, or now, if it has.

        Its connections may stay open all the same (Ray's front keeps them): wait no longer.
        """

    def first_token(self) -> None:
        """The answer has begun."""

    def progress(self) -> None:
        """More of the answer has come (an engine with no progress is looked at)."""

    def finish(self, outcome: Outcome, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """It is over. Token counts as the engine told them; 0 if it did not."""

    def lost(self, why: str, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """The engine broke; the cluster looks after it. To try again, take another seat.

        Token counts are of an answer that had begun.
        """


class Seats(Protocol):
    """The part of `LiveCluster` that serves requests."""

    @property
    def max_wait_s(self) -> float:
        """How long a request may wait that does not say it."""

    async def seat(self, request: Request, told: Callable[[Waiting], None] | None = None) -> Seat:
        """Wait for a place at a ready engine of `request.model`.

        `told` hears at once, and about once a second, where a request stands that has to wait.
        Cancelling the task takes the request out of the queue: its client went away.
        Raises RefusedError.
        """

    def give_up(self, request: Request, error: RefusedError) -> None:
        """A request whose seats were lost gets no other one."""

    def cancelled(self, request: Request) -> None:
        """The client of a request that lost its seat went away before it took another one."""
