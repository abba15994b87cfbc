"""A gateway in front of a live cluster of emulated engines, in the test's own process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from openai import AsyncOpenAI

from modelium.core import Model
from modelium.gateway.access.connections import Bounds
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Limits, Rate
from modelium.gateway.address import Address
from modelium.gateway.context import GatewayContext, Settings
from modelium.gateway.server import listening
from modelium.live.admin import AdminService
from modelium.managers.engine import Engine
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT, QUIET_S
from tests.live.house import UNPROBED, House, house

ONE = [model("a", 60)]
SLOW_LOAD = {**INSTANT, "stages": {"process": 0.1, "weights": 3.0}, "speed": 1.0}
STEP = {"decode_c": 0.01, "mixed_c": 0.01}
STEADY = {
    **INSTANT,
    "speed": 1.0,
    "engine": {"kind": "generate", "kv_tokens": 1_000_000, "step": STEP},
}
"""A token each hundredth of a second."""
TENSORS = {**INSTANT, "engine": {"kind": "infer", "latency_s": [[0.001, 0.002, 0.003, 0.004]]}}


ENDLESS = {**STEADY, "max_model_len": 10_000_000}
ENDLESS["engine"] = {"kind": "generate", "kv_tokens": 10_000_000, "step": STEP}
TOKENS = 9_000_000
"""Asked of an engine that is ENDLESS, they take a day."""
HALTED: dict[str, Any] = {"deadlines": UNPROBED}
"""For a house whose engines a test halts."""


@dataclass
class Site:
    """One gateway, and clients of it."""

    url: str
    house: House
    http: aiohttp.ClientSession
    stack: AsyncExitStack
    desk: GatewayContext
    grpc: str = ""
    """Host and port, where the address has a port for it."""

    def openai(self, **more: Any) -> AsyncOpenAI:
        """The client that users have; it sends nothing again by itself."""
        client = AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=more.pop("api_key", "none"), max_retries=0, **more
        )
        self.stack.push_async_callback(client.close)
        return client

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        """Status and JSON."""
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """Status and JSON."""
        return await self.ask("POST", path, json=body, **more)

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and JSON."""
        async with self.http.request(method, self.url + path, **more) as answer:
            return answer.status, await answer.json()

    @property
    def engine(self) -> Engine:
        """The only one."""
        [engine] = self.house.cluster.engines.values()
        return engine

    @property
    def running(self) -> int:
        """Requests that have a seat."""
        return len(self.house.cluster.dispatcher.seats)

    def waiting(self, name: str = "a") -> int:
        """Requests that wait."""
        return self.house.cluster.dispatcher.queue.waiting(name)

    async def until(self, true: Callable[[], Any]) -> None:
        await self.house.until(true)

    async def journal(self) -> list[tuple[Any, ...]]:
        """(organization, outcome, prompt tokens, output tokens) of each request, once all are over.

        A client may have read the end of its answer before the gateway has noted it.
        """
        await self.until(lambda: not self.running)
        journal = self.house.cluster.journal
        journal.write_rows()
        return journal._db.execute(
            "SELECT organization, outcome, prompt_tokens, output_tokens FROM requests"
        ).fetchall()


@asynccontextmanager
async def site(
    folder: Path,
    models: Sequence[Model] = ONE,
    *gpus: int,
    keys: Keys | None = None,
    rate: Rate | None = None,
    clock: Callable[[], float] | None = None,
    address: Address | None = None,
    bounds: Bounds | None = None,
    tls: Any = None,
    gateway: dict[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[Site]:
    """A cluster and its gateway; `gateway` are its settings, `more` goes to the cluster.

    `clock` is what `rate` is measured by.
    """
    async with house(folder, models, *gpus, **more) as here:
        operations = AdminService(here.cluster, here.driver, "lru")
        limits = Limits(clock or here.cluster.now_s, rate or Rate())
        desk = GatewayContext(limits, keys, Settings(**(gateway or {})))
        desk.open(here.cluster.dispatcher, operations)
        async with (
            listening(desk, address or Address(port=0), bounds) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls or True)) as http,
            AsyncExitStack() as stack,
        ):
            yield Site(url, here, http, stack, desk, desk.grpc)


def visit(folder: Path, act: Callable[[Site], Awaitable[None]], *given: Any, **more: Any) -> None:
    """Run a test's coroutine at a new site."""

    async def run() -> None:
        async with asyncio.timeout(QUIET_S), site(folder, *given, **more) as here:
            await act(here)
            assert here.running == 0

    run_as_served(run())


def run_as_served(work: Coroutine[Any, Any, None]) -> None:
    """Run on the event loop that `modelium run` uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def events(raw: bytes) -> list[Any]:
    """What a stream says: JSON of its events, the text of its comments."""
    told: list[Any] = []
    for part in raw.decode().split("\n\n"):
        if part.startswith("data: {"):
            told.append(json.loads(part[6:]))
        elif part:
            told.append(part)
    return told
