"""What every handler has at hand, and who is calling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from modelium.gateway.errors import ApiError
from modelium.gateway.keys import Keys
from modelium.gateway.limits import Limits
from modelium.live.seats import Seats


@dataclass(frozen=True, slots=True)
class Settings:
    """How the gateway behaves."""

    max_body_bytes: int = 32 << 20
    write_timeout_s: float = 60.0
    """A client that reads nothing for so long is given up."""
    connect_timeout_s: float = 5.0
    """An engine that takes no connection for so long is broken."""
    retries: int = 3
    """How often a request is sent again whose engine broke before the answer began."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that browsers may call from; "*" for all."""
    open_admin: bool = True
    """Admin calls need no key, as nobody from outside can reach the gateway."""


class Admin(Protocol):
    """What operators see and do, as plain values; `modelium.live.operations` on a live cluster.

    Raises RefusedError: 404 for unknown models, 409 for what is not possible now, 503 for failures.
    """

    def status(self) -> dict[str, Any]: ...
    def models(self) -> list[dict[str, Any]]: ...
    def decisions(self, model: str = "", limit: int = 100) -> list[dict[str, Any]]: ...
    def usage(self) -> list[dict[str, Any]]: ...
    async def load(self, model: str) -> dict[str, Any]: ...
    async def unload(self, model: str) -> dict[str, Any]: ...
    async def sleep(self, model: str, level: int = 1) -> dict[str, Any]: ...
    async def wake(self, model: str) -> dict[str, Any]: ...
    def pin(self, model: str, pinned: bool = True) -> dict[str, Any]: ...
    async def remove(self, model: str) -> None: ...
    def subscribe(self, hear: Any) -> Any:
        """Tell `hear(what, about)` of all that happens, until the returned function is called."""


@dataclass
class Desk:
    """The gateway's one shared thing."""

    seats: Seats
    admin: Admin
    limits: Limits
    keys: Keys | None = None
    settings: Settings = field(default_factory=Settings)
    http: aiohttp.ClientSession = field(init=False)
    """To the engines; made when the application starts."""


DESK = web.AppKey("desk", Desk)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling."""

    organization: str
    scopes: Sequence[str]


def caller(http: web.Request) -> Caller:
    """Who is calling; raises ApiError (401) if keys are needed and there is none that is known."""
    desk = http.app[DESK]
    named = http.headers.get("X-Organization", "")[:200]
    if desk.keys is None:
        return Caller(named, ("user", "admin") if desk.settings.open_admin else ("user",))
    given = http.headers.get("Authorization", "")
    secret = given[7:] if given[:7].lower() == "bearer " else http.headers.get("X-Api-Key", "")
    key = desk.keys.find(secret.strip()) if secret else None
    if key is None:
        why = "unknown API key" if secret else "an API key is needed: Authorization: Bearer mk-..."
        raise ApiError(401, why, code="invalid_api_key")
    # A key that may do all may also speak for others: a gateway in front of this one does.
    own = "admin" not in key.scopes or not named
    return Caller(key.organization if own else named, key.scopes)


def operator(http: web.Request) -> Caller:
    """Who is calling, if that is an operator; raises ApiError (401, 403)."""
    who = caller(http)
    if "admin" not in who.scopes:
        why = "this call needs an API key with the scope admin"
        if http.app[DESK].keys is None:
            why += "; none can be asked for: set gateway.keys, or bind to 127.0.0.1"
        raise ApiError(403, why, code="insufficient_permissions")
    return who
