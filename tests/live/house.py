"""A whole live cluster in a test: policy, emulated engines, requests; and what must hold after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from modelium.core import Model, Policy
from modelium.live.bookkeeping import Bookkeeper
from modelium.live.cluster import LiveCluster
from modelium.live.driving import Driver
from modelium.live.inventory import Inventory, PretendInventory
from modelium.live.journal import Journal
from modelium.live.life import alive
from modelium.live.recording import about
from modelium.managers.emulated import EmulatedManager
from modelium.registry import make_policy
from modelium.testing.scenarios import nodes_of
from tests.live.harness import ask, live_input


@dataclass
class House:
    """One running cluster."""

    cluster: LiveCluster
    driver: Driver
    http: aiohttp.ClientSession
    news: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

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

    async def until(self, true: Any, within_s: float = 20.0) -> None:
        """Wait for something that news tell of."""
        async with asyncio.timeout(within_s):
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
    **more: Any,
) -> AsyncIterator[House]:
    """A cluster under `policy`, from its start to its orderly end."""
    some, nodes = nodes_of(*(gpus or (1,)))
    manager = EmulatedManager(folder=folder / "engines", faults=faults)
    cluster = LiveCluster(
        live_input(models, some, nodes, **more),
        {"emulated": manager},
        inventory or PretendInventory(some),
        Journal(folder / "journal.db", about(some, {}, str(policy), {}, "a test")),
    )
    Bookkeeper(cluster)
    made = make_policy(policy) if isinstance(policy, str) else policy
    news: list[tuple[str, Mapping[str, Any]]] = []
    cluster.watchers.news.append(lambda kind, about: news.append((kind, about)))
    async with (
        aiohttp.ClientSession() as http,
        alive(cluster, made, keep_engines=keep_engines) as driver,
    ):
        yield House(cluster, driver, http, news)


def engines_of(folder: Path) -> list[int]:
    """Processes of emulated engines that were started from this folder."""
    place = str(folder / "engines")
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(place) for word in process.info["cmdline"] or ())
    ]
