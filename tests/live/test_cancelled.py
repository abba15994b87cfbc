"""Loads that an operator stops, and loads that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.core import Action, ClusterState, Done, Event, Load, Miss, Move, Sleep, Wake
from modelium.live.engines import unwanted_loads
from modelium.live.records.telemetry import Telemetry
from modelium.live.requests.interface import RefusedError, Request
from modelium.metrics import ModeliumMetrics
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT, QUIET_S
from tests.live.house import House, engines_of, house
from tests.live.idle import FOR_EVER, TWO, WHOLE, A, Idle, loaded, operations

NEVER_AWAKE = {**INSTANT, "wake_s": {"1": 1000.0, "2": 1000.0}, "speed": 1.0}
SLOW_TO_SLEEP = {**INSTANT, "sleep_s": {"1": 0.2}, "speed": 1.0}
GONE = "cancelled: nobody waits for it any more"
STOPPED = "cancelled: an operator unloaded it"


class Remembers(Idle):
    """Loads what is missed on the first GPU, and remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        self.heard.append(event)
        return (Load(event.model, ("n0g0",), "missed"),) if isinstance(event, Miss) else ()

    def ends(self) -> list[Done]:
        return [event for event in self.heard if isinstance(event, Done)]


async def asked(here: House, name: str = "a") -> asyncio.Task[str]:
    """A request whose model is being loaded for it."""
    asking = asyncio.create_task(here.ask(name))
    await here.until(lambda: here.phases(name) == ["loading"])
    return asking


async def gives_up(asking: asyncio.Task[Any]) -> None:
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


def nothing_is_held(here: House) -> None:
    assert not here.cluster.state.instances
    assert here.cluster.lifecycle.ledger.held == WHOLE
    assert here.cluster.failures.of("a") is None


def test_an_unload_ends_a_load_and_refuses_who_waits_for_it(tmp_path: Path) -> None:
    policy = Remembers()

    async def run() -> None:
        async with house(tmp_path, [A], policy=policy, held=True) as here:
            metrics = ModeliumMetrics()
            Telemetry(here.cluster, metrics)
            asking = await asked(here)
            wish = asyncio.create_task(operations(here).load("a"))
            await here.until(lambda: here.cluster.dispatcher.wanted)
            async with asyncio.timeout(QUIET_S):
                told = await operations(here).unload("a")
            assert (told["status"], told["error"]) == ("unloaded", "")
            for one in (asking, wish):
                with pytest.raises(RefusedError, match="unloaded by an operator before") as why:
                    await one
                assert why.value.status == 503
            nothing_is_held(here)
            [end] = policy.ends()
            assert (end.error, end.cancelled, end.instance) == (STOPPED, True, "a#1")
            [done] = here.said("done")
            assert done["error"] == STOPPED
            page = metrics.exposition()[0].decode()
            assert 'loads_total{runtime="emulated",status="cancelled"} 1.0' in page
            assert 'status="failure"} 1.0' not in page
            here.go.set()
            assert await here.ask("a"), "who asks later has it loaded again"

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_an_unload_ends_a_load_that_waits_for_room(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle()) as here:
            operator, name = operations(here), await loaded(here)
            seat = await here.cluster.dispatcher.seat(Request("a"))
            leaving = asyncio.create_task(operator.unload("a"))
            await here.until(lambda: here.phases("a") == ["leaving"])
            here.cluster.start(Load("b", ("n0g0",), "the test"))
            assert here.phases("b") == ["loading"]
            async with asyncio.timeout(QUIET_S):
                assert (await operator.unload("b"))["status"] == "unloaded"
            assert list(here.cluster.state.instances) == [name]
            seat.finish("completed")
            assert (await leaving)["status"] == "unloaded"
            nothing_is_held(here)

    asyncio.run(run())


def test_an_unload_ends_a_load_before_its_first_step(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle(), settings=FOR_EVER) as here:
            async with asyncio.timeout(QUIET_S):
                here.cluster.start(Load("a", ("n0g0",), "the test"))
                await operations(here).unload("a")
            nothing_is_held(here)

    asyncio.run(run())


def test_an_unload_ends_a_wake_and_waits_for_a_sleep(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle(), settings=NEVER_AWAKE) as here:
            name = await loaded(here)
            await operations(here).sleep("a", 2)
            here.cluster.start(Wake(name, "the test"))
            await here.until(lambda: here.cluster.pending_loads.of(name))
            async with asyncio.timeout(QUIET_S):
                assert (await operations(here).unload("a"))["status"] == "unloaded"
            nothing_is_held(here)
            assert engines_of(tmp_path) == []
        async with house(tmp_path / "2", [A], policy=Idle(), settings=SLOW_TO_SLEEP) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            assert here.phases("a") == ["suspending"]
            assert (await operations(here).unload("a"))["status"] == "unloaded"
            nothing_is_held(here)

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_what_has_to_be_there_cannot_be_unloaded_while_it_loads(tmp_path: Path) -> None:
    pinned, least = replace(A, pinned=True), replace(model("b", 10), min_replicas=1)

    async def run() -> None:
        async with house(tmp_path, [pinned, least], 2, policy=Idle(), held=True) as here:
            for name, gpu, why in (
                ("a", "n0g0", "a is pinned"),
                ("b", "n0g1", "b keeps at least 1 copies"),
            ):
                here.cluster.start(Load(name, (gpu,), "the test"))
                if name == "a":
                    with pytest.raises(RefusedError, match="a#1 is loading: not awake yet"):
                        await operations(here).sleep("a")
                with pytest.raises(RefusedError, match=why) as refused:
                    await operations(here).unload(name)
                assert refused.value.status == 409
                here.go.set()
                await here.until(lambda name=name: here.phases(name) == ["ready"])

    asyncio.run(run())


def test_a_load_ends_with_its_last_client_and_the_next_model_has_its_turn(tmp_path: Path) -> None:
    policy = Remembers()

    async def run() -> None:
        async with house(tmp_path, TWO, policy=policy, held=True) as here:
            first, second = await asked(here), asyncio.create_task(here.ask("a"))
            await here.until(lambda: here.cluster.dispatcher.queue.waiting("a") == 2)
            other = asyncio.create_task(here.ask("b"))
            await here.until(lambda: here.cluster.dispatcher.queue.waiting("b"))
            await gives_up(first)
            assert not here.cluster.lost, "somebody waits still"
            await gives_up(second)
            await here.until(lambda: here.phases("b") == ["loading"])
            assert here.phases("a") == []
            assert [end.error for end in policy.ends() if end.cancelled] == [GONE]
            assert here.cluster.failures.of("a") is None
            assert [line["reason"] for line in here.said("decision")][-1] == "missed"
            here.go.set()
            assert await other

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_one_that_waited_too_long_has_gone_as_well(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], held=True) as here:
            with pytest.raises(RefusedError, match=r"no engine of a was ready within 0 s"):
                await here.cluster.dispatcher.seat(Request("a", deadline_s=0.2))
            await here.until(lambda: not here.cluster.state.instances)
            nothing_is_held(here)

    asyncio.run(run())


def test_loads_that_go_on_though_their_client_has_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, 2, policy=Remembers(), held=True) as here:
            cluster = here.cluster
            # The policy wanted it before anybody asked.
            cluster.start(Load("a", ("n0g0",), "ahead of demand"))
            await gives_up(await asked(here))
            assert here.phases("a") == ["loading"]
            # An operator wants it, too.
            await operations(here).unload("a")
            asking, wish = await asked(here), asyncio.create_task(operations(here).load("a"))
            await here.until(lambda: cluster.dispatcher.wanted)
            await gives_up(asking)
            assert not cluster.lost
            here.go.set()
            assert (await wish)["status"] == "ready"
            await operations(here).unload("a")
            here.go.clear()
            # It was pinned meanwhile.
            asking = await asked(here)
            cluster.registry.pin("a", True)
            await gives_up(asking)
            assert not cluster.lost
            cluster.registry.pin("a", False)
            await operations(here).unload("a")
            # It is nearly done.
            cluster.learnt.durations["a", "host"] = cluster.learnt.durations["a", "disk"] = 1.5
            await gives_up(await asked(here))
            assert not cluster.lost
            here.go.set()
            await here.until(lambda: here.phases("a") == ["ready"])

    asyncio.run(run())


def test_what_was_nearly_done_and_does_not_end_is_cancelled_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unwanted_loads, "NEARLY_S", 0.2)

    async def run() -> None:
        async with house(tmp_path, [A], held=True) as here:
            here.cluster.learnt.durations["a", "disk"] = 0.1
            await gives_up(await asked(here))
            await here.until(lambda: here.said("cancelled"))
            await here.until(lambda: not here.cluster.state.instances)

    asyncio.run(run())


def test_a_client_that_comes_again_is_served_however_soon_it_gives_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], held=True) as here:
            await gives_up(await asked(here))
            await here.until(lambda: not here.cluster.state.instances)
            await gives_up(await asked(here))
            assert not here.cluster.lost
            here.go.set()
            await here.until(lambda: here.phases("a") == ["ready"])
            assert await here.ask("a")

    asyncio.run(run())


def test_a_move_is_cancelled_and_its_copy_stays(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], 2, policy=Idle(), held=True) as here:
            here.go.set()
            name = await loaded(here)
            here.go.clear()
            here.cluster.start(Move(name, ("n0g1",), "the test"))
            [new] = [c.id for c in here.cluster.state.coming()]
            here.cluster.cancel(here.cluster.state.copy(new), "the test")
            await here.until(lambda: list(here.cluster.state.instances) == [name])
            assert await here.ask("a")

    asyncio.run(run())
