"""What is looked at again and again, and what follows from what was seen."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest

from modelium.live import watch
from modelium.live.given import Deadlines
from modelium.managers.emulated import EmulatedManager
from modelium.managers.engine import Engine
from modelium.managers.identity import Process, runs
from modelium.testing.scenarios import model
from tests.live.harness import QUIET_S
from tests.live.house import engines_of, house
from tests.live.idle import Idle, loaded

OFTEN = Deadlines(memory_back_s=QUIET_S, stop_grace_s=1.0, probe_every_s=0.0)
LOOKS = 10
SMALL = [model("a", 20), model("b", 20)]


class Slow(EmulatedManager):
    """Its probes last until the test lets them end, as those of a server that is repaired."""

    def __init__(self, *, folder: Path) -> None:
        super().__init__(folder=folder)
        self.go = threading.Event()
        self.begun: Counter[str] = Counter()

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        self.begun[engine.instance] += 1
        assert self.go.wait(QUIET_S)
        return super().trouble(engine, deadline_s)


def test_an_engine_is_probed_again_only_once_the_last_probe_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def looked(process: Process) -> bool:
        nonlocal looks
        looks += 1
        return runs(process)

    monkeypatch.setattr(watch, "ALIVE_EVERY_S", 0.01)
    monkeypatch.setattr(watch, "runs", looked)
    slow = Slow(folder=tmp_path / "engines")

    async def run() -> None:
        async with house(tmp_path, SMALL, policy=Idle(), deadlines=OFTEN) as here:
            here.cluster.managers = {"emulated": slow}
            a, b = await loaded(here, "a"), await loaded(here, "b")
            await here.until(lambda: slow.begun.keys() == {a, b})
            before = looks
            await here.until(lambda: looks > before + 2 * LOOKS)
            assert slow.begun == {a: 1, b: 1}
            slow.go.set()
            await here.until(lambda: min(slow.begun.values()) > 2)

    try:
        asyncio.run(run())
    finally:
        slow.go.set()
    assert engines_of(tmp_path) == []
