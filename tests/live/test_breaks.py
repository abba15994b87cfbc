"""Managers, drivers, engines and listeners that break."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import pytest

from modelium.control.rules import refusal
from modelium.core import Load, Unload, Wake
from modelium.live.engines import health
from modelium.live.engines.backoff import Patience
from modelium.live.requests.interface import RefusedError, Request, Waiting
from modelium.live.settings import Deadlines
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine, Order, Progress
from modelium.managers.identity import identify
from modelium.testing.scenarios import nodes_of
from tests.live.harness import NEVER_S, QUIET_S
from tests.live.house import House, engines_of, house
from tests.live.idle import FOR_EVER, TWO, WHOLE, A, Idle, Survives, Told, loaded, operations


class Breaks(EmulatedManager):
    """A manager with an error of its own."""

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        raise KeyError("version")


def test_an_error_of_a_manager_fails_the_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], patience=Patience(tries=1)) as here:
            here.cluster.managers = {"emulated": Breaks(folder=tmp_path / "engines")}
            with pytest.raises(RefusedError, match="a cannot be loaded: KeyError: 'version'"):
                async with asyncio.timeout(QUIET_S):
                    await here.ask("a")
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.lifecycle.ledger.held == WHOLE

    asyncio.run(run())


def test_gpus_are_looked_at_again_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "GPUS_EVERY_S", 0.05)
    monkeypatch.setattr(health, "AGAIN_S", 0.05)

    async def run() -> None:
        inventory = Told(nodes_of(1)[0])
        async with house(tmp_path, [A], policy=Idle(), inventory=inventory) as here:
            inventory.broken = 1
            await here.until(lambda: here.said("watch-fault"))
            [told] = here.said("watch-fault")
            assert told == {"watch": "gpus", "why": "OSError: no such device"}
            before = len(here.said("gpus"))
            await here.until(lambda: len(here.said("gpus")) > before)

    asyncio.run(run())


def test_memory_of_an_engine_that_starts_is_not_taken_for_that_of_others(tmp_path: Path) -> None:
    async def run() -> None:
        inventory = Told(nodes_of(1)[0])
        async with house(tmp_path, [A], inventory=inventory, settings=FOR_EVER) as here:
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: engines_of(tmp_path))
            [pid] = engines_of(tmp_path)
            before = here.cluster.state.free_bytes("n0g0")
            inventory.hold(identify(pid), 0, 40 << 30)
            await here.cluster.memory.look()
            here.cluster.memory.charge_others()
            assert here.cluster.state.free_bytes("n0g0") == before
            asking.cancel()

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_sleepers_are_adopted_beside_those_who_took_their_room(tmp_path: Path) -> None:
    async def first() -> None:
        async with house(tmp_path, TWO, policy=Idle(), keep_engines=True) as here:
            b = await loaded(here, "b")
            await operations(here).sleep("b", 2)
            await loaded(here, "a")
            await operations(here).sleep("a", 2)
            here.cluster.start(Wake(b, "the test"))
            await here.until(lambda: here.phases("b") == ["ready"])

    async def second() -> None:
        inventory = Told(nodes_of(1)[0])
        async with house(tmp_path, TWO, policy=Idle(), inventory=inventory) as here:
            assert (here.phases("a"), here.phases("b")) == (["asleep"], ["ready"])
            await here.until(lambda: here.cluster.learnt.needs)
            # What a sleeper holds says nothing of what it takes awake.
            assert {name for name, _ in here.cluster.learnt.needs} == {"b"}

    asyncio.run(first())
    gc.collect()
    asyncio.run(second())
    assert engines_of(tmp_path) == []


def test_a_lost_engine_that_cannot_be_ended_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.live.engines.transitions.STOP_AGAIN_S", 0.0)

    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            stubborn = Survives(folder=tmp_path / "engines")
            here.cluster.managers = {"emulated": stubborn}
            name = await loaded(here)
            here.cluster.kill(here.cluster.state.copy(name), "it hangs")
            await here.until(lambda: here.said("survivor"))
            assert here.said("survivor") == [{"instance": name, "why": f"{name} survives"}]
            stubborn.immortal = False

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_nobody_counts_on_the_memory_of_an_engine_that_does_not_end_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.live.engines.transitions.STOP_AGAIN_S", 0.0)
    monkeypatch.setattr("modelium.live.engines.transitions.SURVIVOR_AGAIN_S", 0.05)

    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle()) as here:
            stubborn = Survives(folder=tmp_path / "engines")
            here.cluster.managers = {"emulated": stubborn}
            state = here.cluster.state
            free = state.free_bytes("n0g0")
            name = await loaded(here)
            asking = asyncio.create_task(here.ask("b"))
            here.cluster.start(Unload(name, "the test"))
            here.cluster.start(Load("b", ("n0g0",), "the test"))
            _, load = here.cluster.decisions[-1]
            await here.until(lambda: load.error)
            assert load.error == f"{name} does not leave n0g0"
            assert here.said("survivor")
            assert state.copy(name).stuck
            [row] = [row for row in operations(here).models() if row["name"] == "a"]
            assert [(one["phase"], one["stuck"]) for one in row["instances"]] == [("leaving", True)]
            told = here.cluster.journal._db.execute("SELECT kind, error FROM decisions").fetchall()
            assert dict(told)["unload"] == f"{name} survives"
            assert state.freeing_bytes("n0g0") == 0
            assert refusal(state, Load("b", ("n0g0",)), state.limits).startswith("needs")
            stubborn.immortal = False
            await here.until(lambda: not state.instances)
            assert state.free_bytes("n0g0") == free
            here.cluster.start(Load("b", ("n0g0",), "the test"))
            assert await asking

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_request_whose_listener_breaks_leaves_the_queue(tmp_path: Path) -> None:
    def told(waiting: Waiting) -> None:
        raise OSError("nobody listens")

    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            with pytest.raises(OSError, match="nobody listens"):
                await here.cluster.dispatcher.seat(Request("a"), told)
            assert not here.cluster.dispatcher.queue.waiting("a")

    asyncio.run(run())


def test_a_second_signal_ends_the_wait_for_requests(tmp_path: Path) -> None:
    async def hurry(here: House) -> None:
        await here.until(lambda: here.cluster.dispatcher.closed)
        here.cluster.deadlines = replace(here.cluster.deadlines, shutdown_s=0.0)

    async def run() -> None:
        patient = Deadlines(shutdown_s=NEVER_S)
        async with house(tmp_path, [A], policy=Idle(), deadlines=patient) as here:
            await loaded(here)
            await here.cluster.dispatcher.seat(Request("a"))
            hurrying = asyncio.create_task(hurry(here))
        await hurrying

    asyncio.run(asyncio.wait_for(run(), QUIET_S))
