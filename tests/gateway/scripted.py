"""Engines that misbehave to order, each a real HTTP server, and the smallest `Seats` over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp import web

from modelium.gateway.access.limits import Limits, Rate
from modelium.gateway.address import Address
from modelium.gateway.context import GatewayContext, Settings
from modelium.gateway.server import listening
from modelium.live.requests.interface import Outcome, RefusedError, Request, Waiting
from modelium.managers.engine import Api, Engine
from tests.gateway.site import run_as_served
from tests.live.harness import QUIET_S

Part = bytes | str
BREAK = "break"
"""The connection is cut here."""
WAIT = "wait"
"""Nothing more comes."""


@dataclass
class Script:
    """What an engine answers to one request."""

    parts: list[Part]
    status: int = 200
    kind: str = "text/event-stream"


@dataclass
class Chair:
    """A seat that remembers how it was left."""

    engine: Engine
    request: Request
    left: list[tuple[Any, ...]]
    first: bool = False
    cut: str = ""

    def first_token(self) -> None:
        self.first = True

    def progress(self) -> None:
        pass

    def when_cut(self, hear: Callable[[], object]) -> None:
        pass

    def finish(self, outcome: Outcome, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        self.left.append((outcome, prompt_tokens, output_tokens))

    def lost(self, why: str, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        self.left.append(("lost", self.first))


@dataclass
class Stage:
    """One gateway before one engine that follows scripts, one a request."""

    scripts: list[Script]
    url: str = ""
    engine: Engine = field(init=False)
    left: list[tuple[Any, ...]] = field(default_factory=list)
    heard: list[tuple[str, bytes, Mapping[str, str]]] = field(default_factory=list)
    """Path, body and headers of each request to the engine."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The gateway has closed a connection on which the engine was answering."""
    http: aiohttp.ClientSession = field(init=False)
    max_wait_s: float = 600.0

    async def seat(self, request: Request, told: Callable[[Waiting], None] | None = None) -> Chair:
        return Chair(self.engine, request, self.left)

    def give_up(self, request: Request, error: RefusedError) -> None:
        self.left.append(("given up", str(error)))

    def cancelled(self, request: Request) -> None:
        self.left.append(("cancelled", request.retries))

    async def play(self, http: web.Request) -> web.StreamResponse:
        """The engine's side."""
        self.heard.append((http.path, await http.read(), http.headers))
        script = self.scripts.pop(0)
        answer = web.StreamResponse(
            status=script.status, headers={"Content-Type": script.kind, "X-Engine": "private"}
        )
        try:
            await answer.prepare(http)
            for part in script.parts:
                if part == BREAK:
                    assert http.transport is not None
                    http.transport.abort()
                elif part == WAIT:
                    await asyncio.Event().wait()
                else:
                    assert isinstance(part, bytes)
                    await answer.write(part)
                    await asyncio.sleep(0.005)  # so that parts are not sent as one
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        return answer

    async def ask(self, path: str = "/v1/completions", **more: Any) -> tuple[int, bytes]:
        """One request to the gateway: status and body."""
        body: dict[str, Any] = {"model": "a"}
        if path == "/v1/completions":
            body["prompt"] = "x"
        elif path == "/v1/chat/completions":
            body["messages"] = [{"role": "user", "content": "x"}]
        async with self.http.post(self.url + path, json={**body, **more}) as answer:
            assert "X-Engine" not in answer.headers
            return answer.status, await answer.read()


@asynccontextmanager
async def stage(
    *scripts: Script,
    api: Api = "openai",
    name: str = "a",
    runtime: str = "vllm",
    settings: Settings | None = None,
    **extra: Any,
) -> AsyncIterator[Stage]:
    """The engine, the gateway with its settings, and a client."""
    here = Stage(list(scripts))
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", here.play)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    here.engine = Engine("a#1", "a", "scripted", f"http://127.0.0.1:{port}", api, name, extra=extra)
    clock = asyncio.get_running_loop().time
    admin: Any = SimpleNamespace(runtime_of=lambda name: runtime)
    desk = GatewayContext(Limits(clock, Rate()), None, settings or Settings())
    desk.open(here, admin)
    try:
        async with (
            listening(desk, Address(port=0)) as here.url,
            aiohttp.ClientSession() as here.http,
        ):
            yield here
    finally:
        await runner.cleanup()


def perform(act: Callable[[Stage], Awaitable[None]], *scripts: Script, **more: Any) -> None:
    """Run a test's coroutine on a stage."""

    async def run() -> None:
        async with asyncio.timeout(QUIET_S), stage(*scripts, **more) as here:
            await act(here)

    run_as_served(run())
