"""What is looked at again and again, and what follows from what was seen."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from modelium.core import Fault
from modelium.live.engines import health
from modelium.live.engines.gpus import PretendInventory, Reading
from modelium.live.records.export import read_run
from modelium.live.settings import Deadlines
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine
from modelium.managers.identity import Process, runs
from modelium.testing.scenarios import model, nodes_of
from modelium.units import GIB
from tests.live.harness import QUIET_S
from tests.live.house import engines_of, house
from tests.live.idle import TWO, Idle, Survives, loaded, operations

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

    monkeypatch.setattr(health, "ALIVE_EVERY_S", 0.01)
    monkeypatch.setattr(health, "runs", looked)
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


class Shared(PretendInventory):
    """GPUs of which another program holds something."""

    pretend = False
    foreign_bytes = 0

    def read(self) -> dict[int, Reading]:
        def less(one: Reading) -> Reading:
            processes = {**one.processes, 1: self.foreign_bytes}
            return replace(one, processes=processes, free_bytes=one.free_bytes - self.foreign_bytes)

        return {device: less(one) for device, one in super().read().items()}


def test_memory_that_others_give_back_is_offered_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "GPUS_EVERY_S", 0.02)

    async def run() -> None:
        inventory = Shared(nodes_of(1)[0])
        inventory.foreign_bytes = 70 * GIB
        async with house(tmp_path, TWO, inventory=inventory) as here:
            await here.until(lambda: here.cluster.state.free_bytes("n0g0") < 30 * GIB)
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: here.cluster.dispatcher.queue.waiting("a"))
            assert here.phases("a") == []
            inventory.foreign_bytes = 0
            assert await asyncio.wait_for(asking, QUIET_S)

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_memory_of_an_engine_that_ends_at_last_is_offered_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.live.engines.transitions.STOP_AGAIN_S", 0.0)
    monkeypatch.setattr("modelium.live.engines.transitions.SURVIVOR_AGAIN_S", 0.05)

    async def run() -> None:
        async with house(tmp_path, TWO) as here:
            cluster, stubborn = here.cluster, Survives(folder=tmp_path / "engines")
            cluster.managers = {"emulated": stubborn}
            assert await here.ask("a")
            [lost] = cluster.state.instances_of("a")
            cluster.kill(cluster.state.copy(lost.id), "it hangs")
            cluster.tell(Fault(lost.id, "it hangs"))
            await here.until(lambda: cluster.state.copy(lost.id).stuck)
            asking = asyncio.create_task(here.ask("b"))
            await here.until(lambda: cluster.dispatcher.queue.waiting("b"))
            assert here.phases("b") == []
            stubborn.immortal = False
            assert await asyncio.wait_for(asking, QUIET_S)

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_server_that_is_killed_leaves_its_timeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TIMELINE_EVERY_S", 0.05)
    journal = tmp_path / "journal.db"

    def on_disk() -> dict[str, set[str]]:
        """Instances by what they hold, as the report of a run has them."""
        found: dict[str, set[str]] = {}
        for one in read_run(journal).timeline.to_pylist():
            found.setdefault(one["kind"], set()).add(one["instance"])
        return found

    async def run() -> None:
        async with house(tmp_path, TWO, 2) as here:
            await here.ask("a")
            cluster = here.cluster
            assert cluster.journal.write_rows()
            await here.until(lambda: {"weights", "busy"} <= on_disk().keys())
            assert on_disk()["weights"] == {"a#1"}  # which is there still
            await here.ask("b")
            await operations(here).unload("a")
            await here.until(lambda: on_disk()["weights"] == {"a#1", "b#2"})
            await here.until(lambda: "leaving" in on_disk())
            assert (
                len(cluster.lifecycle.timeline.rows) < 3
            )  # it does not keep what it has handed over

    asyncio.run(run())
    spans: dict[tuple[str, str], float] = {}
    rows = [one for one in read_run(journal).timeline.to_pylist() if one["kind"] != "busy"]
    for one in sorted(rows, key=lambda one: one["start_s"]):
        part = one["instance"], one["kind"] if one["kind"] in {"kv", "overhead"} else "whole"
        assert one["start_s"] >= spans.get(part, 0.0)  # no second is told of twice
        spans[part] = one["end_s"]
