"""A live cluster of emulated engines, with hands on its loop and its users."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from modelium.core import Action, ClusterState, Event, Gpu, Limits, Model, Node
from modelium.live.cluster import LiveCluster
from modelium.live.engines.gpus import PretendInventory
from modelium.live.records.journal import Journal
from modelium.live.requests.interface import RefusedError, Request
from modelium.live.settings import Deadlines, LiveInput, Served
from modelium.managers.emulated.manager import EmulatedManager

QUIET_S = 300.0
"""Real seconds within which everything in these tests has settled, on the slowest machine."""
NEVER_S = 1e6
INSTANT = {"stages": {"process": 0.0}, "sleep_s": {}, "wake_s": {}, "speed": "inf"}

STEADY = {
    **INSTANT,
    "speed": 1.0,
    "engine": {
        "kind": "generate",
        "kv_tokens": 10_000,
        "step": {"decode_c": 0.02, "mixed_c": 0.02},
    },
}
"""A request takes a few hundredths of a second: long enough to be seen under way."""


def live_input(
    models: Sequence[Model], gpus: Sequence[Gpu], nodes: Sequence[Node], **more: object
) -> LiveInput:
    """Emulated engines that take no time."""
    settings = more.pop("settings", INSTANT)
    served = [Served(model, "emulated", None, settings) for model in models]  # type: ignore[arg-type]
    given = {
        "deadlines": Deadlines(memory_back_s=QUIET_S, stop_grace_s=1.0),
        "limits": Limits(),
        **more,
    }
    return LiveInput(
        list(nodes),
        list(gpus),
        {gpu.id: k for k, gpu in enumerate(gpus)},
        served,
        lambda *request: 1.0,
        **given,  # type: ignore[arg-type]
    )


async def ask(
    cluster: LiveCluster,
    model: str,
    http: aiohttp.ClientSession,
    after: asyncio.Event | None = None,
) -> str:
    """One small request, as the gateway would send it; returns the text.

    It takes its seat at once, and asks its engine `after` something.
    """
    seat = await cluster.dispatcher.seat(Request(model))
    try:
        if after is not None:
            await after.wait()
        body = {"model": seat.engine.name, "prompt": "hello", "max_tokens": 4}
        async with http.post(f"{seat.engine.url}/v1/completions", json=body) as answer:
            given = await answer.json()
            answer.raise_for_status()
    except BaseException as error:
        seat.lost(str(error))
        raise
    seat.finish("completed", output_tokens=given["usage"]["completion_tokens"])
    return str(given["choices"][0]["text"])


class LiveHarness:
    """What `modelium.testing.check_cluster` drives."""

    def __init__(
        self, folder: Path, models: Sequence[Model], gpus: Sequence[Gpu], nodes: Sequence[Node]
    ) -> None:
        self.finished = 0
        self.manager = EmulatedManager(folder=folder)
        self.runner = asyncio.Runner()
        self._asking: set[asyncio.Task[None]] = set()
        self._answers = asyncio.Event()
        """Requests are answered while there is plenty of time, and never in a moment."""

        async def make() -> LiveCluster:
            journal = Journal(folder / "journal.db")
            given = live_input(models, gpus, nodes, settings=STEADY)
            self.http = aiohttp.ClientSession()
            return LiveCluster(given, {"emulated": self.manager}, PretendInventory(gpus), journal)

        self.cluster = self.runner.run(make())
        self.runner.run(self.cluster.memory.look())

    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    def start(self, action: Action) -> None:
        self.cluster.start(action)

    def listen(self, hear: Callable[[Event], None]) -> None:
        self.cluster.listen(hear)

    def submit(self, model: str) -> None:
        task = self.runner.get_loop().create_task(self._ask(model))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, model: str) -> None:
        with contextlib.suppress(RefusedError):
            await ask(self.cluster, model, self.http, self._answers)
            self.finished += 1

    def run(self, seconds: float) -> None:
        """Let the loop turn: for real, or until nothing is under way if it is long."""
        self.runner.run(self._settle() if seconds >= QUIET_S else self._turn(seconds))

    async def _turn(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    async def _settle(self) -> None:
        self._answers.set()
        async with asyncio.timeout(QUIET_S):
            while self.cluster.transitions_under_way() or self.cluster.dispatcher.seats:
                await asyncio.sleep(0.01)
            await self._turn(0.02)
        self._answers.clear()

    def close(self) -> None:
        async def end() -> None:
            for copy in list(self.cluster.state.instances.values()):
                self.cluster.kill(self.cluster.state.copy(copy.id), "the test is over")
            for task in self._asking:
                task.cancel()
            await self.cluster.settle()
            await self.http.close()
            self.cluster.shut()

        self.runner.run(end())
        self.runner.close()
