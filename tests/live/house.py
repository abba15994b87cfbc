"""A whole live cluster in a test: policy, emulated engines, requests; and what must hold after."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from modelium.core import Model, Policy
from modelium.live.cluster import LiveCluster
from modelium.live.control_loop import ControlLoop
from modelium.live.engines.gpus import Inventory, PretendInventory
from modelium.live.records.export import about
from modelium.live.records.journal import Journal
from modelium.live.records.request_log import RequestLog
from modelium.live.run import alive
from modelium.live.settings import Deadlines
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine, Order, Progress, StartError
from modelium.plugins.registry import make_policy
from modelium.testing.scenarios import nodes_of
from tests.live.harness import NEVER_S, QUIET_S, ask, live_input

UNPROBED = Deadlines(
    memory_back_s=QUIET_S, stop_grace_s=1.0, probe_every_s=NEVER_S, stall_s=NEVER_S
)
"""For engines that a test stops for as long as it likes."""


class Held(EmulatedManager):
    """Its engines start when the test lets them: a load lasts as long as the test needs it to."""

    def __init__(self, *, folder: Path) -> None:
        super().__init__(folder=folder)
        self.go = threading.Event()

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        if progress is not None:
            progress("process", 0.0)
        while not self.go.wait(0.05):
            if order.cancelled.is_set():
                raise StartError(f"{order.model}: the start was given up")
        return super().start(order, progress)


@dataclass
class House:
    """One running cluster."""

    cluster: LiveCluster
    driver: ControlLoop
    http: aiohttp.ClientSession
    news: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    """Lets engines start, where the house was made with `held`."""

    async def ask(self, model: str) -> str:
        """One small request, sent once."""
        return await ask(self.cluster, model, self.http)

    async def ask_again(self, model: str, tries: int = 5) -> str:
        """One small request, sent again while its engine is lost before it has answered."""
        for left in reversed(range(tries)):
            try:
                return await self.ask(model)
            except aiohttp.ClientError:
                if not left:
                    raise
        raise AssertionError

    def said(self, kind: str) -> list[Mapping[str, Any]]:
        return [about for name, about in self.news if name == kind]

    async def until(self, true: Any) -> None:
        """Wait for something that news tell of."""
        async with asyncio.timeout(QUIET_S):
            while not true():
                await asyncio.sleep(0.01)

    def phases(self, model: str) -> list[str]:
        return [c.phase.value for c in self.cluster.state.instances_of(model)]


@asynccontextmanager
async def house(
    folder: Path,
    models: Sequence[Model],
    *gpus: int,
    policy: str | Policy = "lru",
    inventory: Inventory | None = None,
    keep_engines: bool = False,
    faults: bool = False,
    held: bool = False,
    **more: Any,
) -> AsyncIterator[House]:
    """A cluster under `policy`, from its start to its orderly end."""
    some, nodes = nodes_of(*(gpus or (1,)))
    holder = Held(folder=folder / "engines")
    manager = holder if held else EmulatedManager(folder=folder / "engines", faults=faults)
    cluster = LiveCluster(
        live_input(models, some, nodes, **more),
        {"emulated": manager},
        inventory or PretendInventory(some),
        Journal(folder / "journal.db", about(some, {}, str(policy), {}, "a test")),
    )
    RequestLog(cluster)
    made = make_policy(policy) if isinstance(policy, str) else policy
    news: list[tuple[str, Mapping[str, Any]]] = []
    cluster.watchers.news.append(lambda kind, about: news.append((kind, about)))
    async with (
        aiohttp.ClientSession() as http,
        alive(cluster, made, keep_engines=keep_engines) as driver,
    ):
        yield House(cluster, driver, http, news, holder.go)


@contextmanager
def frozen(engine: Engine) -> Iterator[None]:
    """An engine does nothing meanwhile: what it was asked stays under way."""
    assert engine.process is not None
    os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)


def engines_of(folder: Path) -> list[int]:
    """Processes of emulated engines that were started from this folder."""
    place = str(folder / "engines")
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(place) for word in process.info["cmdline"] or ())
    ]
