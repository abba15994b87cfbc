"""What every handler has at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from modelium.gateway.access.connections import Connections
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Limits
from modelium.live.requests.interface import Seats


@dataclass(frozen=True, slots=True)
class Settings:
    """How the gateway behaves."""

    max_body_bytes: int = 32 << 20
    read_timeout_s: float = 60.0
    """A client has so long to send its request, and a second more for each `LEAST_BYTES_PER_S`."""
    write_timeout_s: float = 60.0
    """A client that reads nothing for so long is given up."""
    connect_timeout_s: float = 5.0
    """An engine that takes no connection for so long is broken."""
    retries: int = 3
    """How often a request is sent again whose engine broke before the answer began."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that browsers may call from; "*" for all."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of models, and the models that they name."""
    open_admin: bool = True
    """Admin calls from this machine need no key: the gateway is bound to loopback."""


class Admin(Protocol):
    """What operators see and do, as plain values; `modelium.live.admin` on a live cluster.

    Raises RefusedError: 404 for unknown models, 409 for what is not possible now, 503 for failures.
    """

    def status(self) -> dict[str, Any]: ...
    def models(self) -> list[dict[str, Any]]: ...
    def runtime_of(self, model: str) -> str:
        """What serves it; "" for unknown models."""

    async def decisions(self, model: str = "", limit: int = 100) -> list[dict[str, Any]]: ...
    async def usage(self) -> list[dict[str, Any]]: ...
    async def load(self, model: str) -> dict[str, Any]: ...
    async def unload(self, model: str) -> dict[str, Any]: ...
    async def sleep(self, model: str, level: int = 1) -> dict[str, Any]: ...
    async def wake(self, model: str) -> dict[str, Any]: ...
    async def update(self, model: str) -> dict[str, Any]: ...
    def pin(self, model: str, pinned: bool = True) -> dict[str, Any]: ...
    async def remove(self, model: str) -> None: ...
    async def reload(self) -> dict[str, Any]:
        """Take up what has changed in the configuration."""

    def subscribe(self, hear: Callable[[str, Mapping[str, Any]], None]) -> Callable[[], None]:
        """Tell `hear(what, about)` of all that happens, until the returned function is called."""


@dataclass
class GatewayContext:
    """The gateway's one shared thing. Until it is opened, requests are refused: 503, try again."""

    limits: Limits
    keys: Keys | None = None
    settings: Settings = field(default_factory=Settings)
    seats: Seats = field(init=False)
    admin: Admin = field(init=False)
    is_open: bool = field(init=False, default=False)
    http: aiohttp.ClientSession = field(init=False)
    """To the engines; made when the application starts."""
    connections: Connections = field(init=False)
    """Of clients; made when the gateway listens."""
    grpc: str = ""
    """Host and port of KServe's gRPC, once it is served."""

    def open(self, seats: Seats, admin: Admin) -> None:
        """Serve from now on."""
        self.seats, self.admin, self.is_open = seats, admin, True

    def model_called(self, name: str) -> str:
        """The name of the model that a client means: its own name goes before an alias."""
        model = self.settings.aliases.get(name, name)
        return name if model != name and self.admin.runtime_of(name) else model


DESK = web.AppKey("desk", GatewayContext)
REQUEST_ID = web.RequestKey("request_id", str)
