"""The machine's clock is set while a cluster runs: nobody is lost by it, nobody waits longer."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelium.live.engines import health
from modelium.live.requests.interface import RefusedError, Request
from modelium.managers.identity import identify
from modelium.managers.ports import Ports
from modelium.managers.process import Processes
from modelium.managers.ray.head import Ray
from modelium.managers.triton.server import Gpu, Server
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT
from tests.live.house import engines_of, frozen, house

HOUR_S = 3600.0
TWO = [model("a", 60), model("b", 60)]
kept = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the time of day, as everything in this process sees it, so many seconds off.

    That is what setting the machine's clock does: `time.time` jumps, and so does the kernel's
    "btime", from which psutil reckons when a process was created. A monotonic clock does not.
    """
    now, booted = time.time, psutil.boot_time()
    platform = psutil._psplatform  # type: ignore[attr-defined]

    def set_to(off_s: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + off_s)
        monkeypatch.setattr(platform, "boot_time", lambda: booted + off_s)

    set_to(0.0)
    return set_to


def test_the_stand_in_moves_what_a_set_clock_moves(set_clock: SetClock) -> None:
    before, created_s = time.time(), psutil.Process().create_time()
    set_clock(HOUR_S)
    assert time.time() - before == pytest.approx(HOUR_S, abs=60.0)
    assert psutil.Process().create_time() - created_s == pytest.approx(HOUR_S)


@kept
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_a_clock_that_is_set_changes_nothing(
    tmp_path: Path, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    monkeypatch.setattr(health, "GPUS_EVERY_S", 0.02)
    monkeypatch.setattr(health, "ALIVE_EVERY_S", 0.01)

    async def first() -> None:
        async with house(tmp_path, TWO, 2, keep_engines=True, settings=INSTANT) as here:

            async def looked() -> None:
                """Engines and GPUs were looked at several times since now."""
                for _ in range(10):
                    before = len(here.said("gpus"))
                    await here.until(lambda before=before: len(here.said("gpus")) > before)

            await here.ask("a")
            set_clock(off_s)
            await looked()
            assert here.phases("a") == ["ready"]
            assert here.cluster.memory.readings[0].used_bytes > 0, "it holds its memory still"
            await here.ask("b")  # a load under the new time
            [engine] = [e for e in here.cluster.engines.values() if e.model == "a"]
            with frozen(engine):
                asking = asyncio.create_task(here.ask("a"))
                await here.until(lambda: here.cluster.dispatcher.seats)
                set_clock(0.0)  # and back, with a request under way
                await looked()
                assert not asking.done()
            assert await asking
            assert not here.said("lost")
            assert not here.said("memory")
            pids.update(engines_of(tmp_path))
        set_clock(off_s)

    async def second() -> None:
        async with house(tmp_path, TWO, 2) as here:
            assert {e.process.pid for e in here.cluster.engines.values() if e.process} == pids
            assert not here.said("swept")
            assert not here.said("ended")
            set_clock(0.0)
            await here.ask("a")

    pids: set[int] = set()
    asyncio.run(first())
    gc.collect()
    asyncio.run(second())
    assert engines_of(tmp_path) == []


def test_who_waits_waits_as_long_as_said(tmp_path: Path, set_clock: SetClock) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, held=True) as here:
            patient = Request("a", deadline_s=HOUR_S / 2)
            hasty = Request("a", deadline_s=0.2)
            waiting = asyncio.create_task(here.cluster.dispatcher.seat(patient))
            await here.until(lambda: here.cluster.decisions)
            for off_s in (HOUR_S, -HOUR_S):
                set_clock(off_s)
                with pytest.raises(RefusedError):
                    await here.cluster.dispatcher.seat(hasty)
            assert not waiting.done()
            here.go.set()
            (await waiting).finish("completed")

    asyncio.run(run())


@kept
@pytest.mark.parametrize("late_s", [0.0, 100.0], ids=["it", "another one"])
def test_engines_of_an_earlier_version_are_adopted(tmp_path: Path, late_s: float) -> None:
    """Its journal has the time of day at which each process was started."""

    async def first() -> None:
        async with house(tmp_path, TWO, keep_engines=True) as here:
            await here.ask("a")

    async def second() -> int:
        async with house(tmp_path, TWO) as here:
            return len(here.cluster.engines)

    asyncio.run(first())
    gc.collect()
    [pid] = engines_of(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        [(text,)] = db.execute("SELECT engine FROM engines")
        started_s = psutil.Process(pid).create_time() + late_s
        changed = json.loads(text) | {"process": {"pid": pid, "started_s": started_s}}
        db.execute("UPDATE engines SET engine = ?", (json.dumps(changed),))
    assert asyncio.run(second()) == (0 if late_s else 1)
    assert engines_of(tmp_path) == []


@pytest.mark.parametrize("note", ["of an earlier version", "of this version", "of another boot"])
def test_servers_are_found_by_their_notes(tmp_path: Path, note: str) -> None:
    processes = Processes(tmp_path, "test")
    process = processes.spawn("server", ["sleep", "600"], {})
    told: dict[str, Any] = {
        "of an earlier version": {
            "pid": process.pid,
            "started_s": psutil.Process(process.pid).create_time(),
        },
        "of this version": identify(process.pid).as_dict(),
        "of another boot": {**process.as_dict(), "boot_id": "another"},
    }[note]
    try:
        for name in ("triton-gpu0.json", "ray.json"):
            text = json.dumps({**told, "ports": [1, 2, 3]})
            (tmp_path / name).write_text(text, encoding="utf-8")
        layout: Any = None  # only what starts a server needs one
        triton = Server(processes, layout, Ports("127.0.0.1", 8500), Gpu(0), "127.0.0.1", {})
        ray = Ray(processes, Path("ray"), None, Ports("127.0.0.1", 6400), "127.0.0.1", {})
        assert triton.adopt() == ray.adopt() == (note != "of another boot")
        if triton.runs():
            triton.client.close()
    finally:
        processes.end("server", process, 0.0)
