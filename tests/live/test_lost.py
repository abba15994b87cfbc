"""Copies that are lost while something is done to them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from modelium.core import Load, Sleep, Unload, Wake
from modelium.live.engines import health
from modelium.live.requests.interface import Request
from modelium.live.settings import Deadlines
from tests.live.harness import QUIET_S
from tests.live.house import engines_of, house
from tests.live.idle import TWO, WHOLE, A, Idle, loaded


def test_a_copy_that_is_lost_as_its_load_begins_does_not_come_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            here.cluster.start(Load("a", ("n0g0",), "the test"))
            [copy] = here.cluster.state.instances
            here.cluster.kill(here.cluster.state.copy(copy), "its GPU burns")
            await here.until(lambda: not here.cluster.state.instances)
            assert [line.error for _, line in here.cluster.decisions] == ["its GPU burns"]
            assert here.cluster.lifecycle.ledger.held == WHOLE
            assert not here.cluster.lost

    asyncio.run(run())


def test_a_copy_that_is_lost_while_it_wakes_does_not_serve(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            await here.until(lambda: here.phases("a") == ["asleep"])
            here.cluster.start(Wake(name, "the test"))
            here.cluster.kill(here.cluster.state.copy(name), "its GPU burns")
            await here.until(lambda: here.phases("a") != ["waking"])
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.lifecycle.ledger.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_copy_that_is_lost_while_it_falls_asleep_leaves_the_books(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            here.cluster.kill(here.cluster.state.copy(name), "its GPU burns")
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.lifecycle.ledger.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_gpu_lost_under_a_copy_that_drains_ends_the_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            seat = await here.cluster.dispatcher.seat(Request("a"))  # its engine never answers
            here.cluster.start(Unload(name, "the test", drain=True))
            health.lose(here.cluster, "n0g0", "it burns")
            await here.until(lambda: not here.cluster.state.instances)
            seat.lost("its engine is gone")
            assert here.cluster.dispatcher.meters == {}

    asyncio.run(run())


def test_the_end_does_not_wait_for_ever_for_a_copy_that_drains(tmp_path: Path) -> None:
    async def run() -> None:
        deadlines = Deadlines(shutdown_s=0.1, stop_grace_s=1.0)
        async with house(tmp_path, [A], policy=Idle(), deadlines=deadlines) as here:
            name = await loaded(here)
            await here.cluster.dispatcher.seat(Request("a"))
            here.cluster.start(Unload(name, "the test", drain=True))

    asyncio.run(asyncio.wait_for(run(), QUIET_S))
    assert engines_of(tmp_path) == []


def test_memory_that_comes_free_as_a_load_is_given_up_stays_free(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle()) as here:
            cluster = here.cluster
            name = await loaded(here, "b")
            seat = await cluster.dispatcher.seat(Request("b"))
            cluster.start(Unload(name, "the test", drain=True))
            cluster.start(Load("a", ("n0g0",), "the test"))
            await here.until(lambda: cluster.waits_for_room)
            [waits] = cluster.waits_for_room
            cluster.kill(cluster.state.copy(waits), "given up")
            cluster.lifecycle.hold(cluster.state.copy(name), 0)  # before the load has heard of it
            seat.finish("completed")
            await here.until(lambda: not cluster.state.instances)
            assert cluster.lifecycle.ledger.held == WHOLE

    asyncio.run(run())
