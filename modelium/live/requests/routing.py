"""Which of a model's ready instances a request goes to. The names are those of the simulator."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import count

from modelium.control.state import Copy
from modelium.errors import ConfigError, did_you_mean
from modelium.live.requests.interface import Request

Router = Callable[[Request, Sequence[Copy]], Copy]
"""Chooses among instances that have a place free; there is at least one."""


def least_outstanding(request: Request, copies: Sequence[Copy]) -> Copy:
    """The one with the fewest requests."""
    return min(copies, key=lambda copy: copy.running)


def session_affinity(request: Request, copies: Sequence[Copy]) -> Copy:
    """The same one for all requests of a session, whose prefix it may have cached."""
    if not request.session:
        return least_outstanding(request, copies)
    # Rendezvous hashing: when copies come or go, only the sessions of those move.
    return max(copies, key=lambda copy: zlib.crc32(f"{request.session}\0{copy.id}".encode()))


def round_robin() -> Router:
    """One after another."""
    turn = count()
    return lambda request, copies: copies[next(turn) % len(copies)]


ROUTERS: dict[str, Callable[[], Router]] = {
    "least_outstanding": lambda: least_outstanding,
    "round_robin": round_robin,
    # What waits, waits in one queue before all copies: the shortest queue has the fewest requests.
    "shortest_queue": lambda: least_outstanding,
    "session_affinity": lambda: session_affinity,
}


def router(name: str) -> Router:
    """Make a router. Raises ConfigError for unknown names."""
    if name not in ROUTERS:
        hint = did_you_mean(name, ROUTERS) or f" There are {', '.join(ROUTERS)}."
        raise ConfigError(f"no router called {name!r}.{hint}")
    return ROUTERS[name]()
