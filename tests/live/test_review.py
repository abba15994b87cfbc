"""What happens between two awaits: losses, removals and ends at awkward moments."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from modelium.core import Action, ClusterState, Event, Load, Sleep, Unload, Wake
from modelium.live import watch
from modelium.live.failures import Patience
from modelium.live.given import Deadlines
from modelium.live.inventory import PretendInventory, Reading
from modelium.live.operations import Operations
from modelium.live.reception import House as Rules
from modelium.live.seats import RefusedError, Request, Waiting
from modelium.managers.emulated import EmulatedManager
from modelium.managers.engine import Engine, EngineError, Order, Progress
from modelium.rules import refusal
from modelium.testing.scenarios import model, nodes_of
from tests.live.harness import INSTANT
from tests.live.house import House, engines_of, house

FOR_EVER = {**INSTANT, "stages": {"process": 0.0, "weights": 1000.0}, "speed": 1.0}
A = model("a", 60)
TWO = [A, model("b", 60)]
WHOLE = {"n0g0": 0}


class Idle:
    """Leaves all to the test."""

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        return ()


async def loaded(here: House, name: str = "a") -> str:
    """Load a model by hand; the name of its instance."""
    here.cluster.start(Load(name, ("n0g0",), "the test"))
    await here.until(lambda: here.phases(name) == ["ready"])
    return next(copy.id for copy in here.cluster.state.instances_of(name))


def operations(here: House) -> Operations:
    return Operations(here.cluster, here.driver, "idle")


# A copy that is lost while something is done to it


def test_a_copy_that_is_lost_as_its_load_begins_does_not_come_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            here.cluster.start(Load("a", ("n0g0",), "the test"))
            [copy] = here.cluster.state.instances
            here.cluster.kill(here.cluster.state.copy(copy), "its GPU burns")
            await here.until(lambda: not here.cluster.state.instances)
            assert [line.error for _, line in here.cluster.decisions] == ["its GPU burns"]
            assert here.cluster.room.held == WHOLE
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
            assert here.cluster.room.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_copy_that_is_lost_while_it_falls_asleep_leaves_the_books(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            here.cluster.kill(here.cluster.state.copy(name), "its GPU burns")
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.room.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_gpu_lost_under_a_copy_that_drains_ends_the_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            seat = await here.cluster.reception.seat(Request("a"))  # its engine never answers
            here.cluster.start(Unload(name, "the test", drain=True))
            watch.lose(here.cluster, "n0g0", "it burns")
            await here.until(lambda: not here.cluster.state.instances, 5.0)
            seat.lost("its engine is gone")
            assert here.cluster.reception.meters == {}

    asyncio.run(run())


def test_the_end_does_not_wait_for_ever_for_a_copy_that_drains(tmp_path: Path) -> None:
    async def run() -> None:
        deadlines = Deadlines(shutdown_s=0.1, stop_grace_s=1.0)
        async with house(tmp_path, [A], policy=Idle(), deadlines=deadlines) as here:
            name = await loaded(here)
            await here.cluster.reception.seat(Request("a"))
            here.cluster.start(Unload(name, "the test", drain=True))

    asyncio.run(asyncio.wait_for(run(), 15.0))
    assert engines_of(tmp_path) == []


def test_memory_that_comes_free_as_a_load_is_given_up_stays_free(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle()) as here:
            cluster = here.cluster
            name = await loaded(here, "b")
            seat = await cluster.reception.seat(Request("b"))
            cluster.start(Unload(name, "the test", drain=True))
            cluster.start(Load("a", ("n0g0",), "the test"))
            await here.until(lambda: cluster.waits_for_room)
            [waits] = cluster.waits_for_room
            cluster.kill(cluster.state.copy(waits), "given up")
            cluster.hold(cluster.state.copy(name), 0)  # before the load has heard of it
            seat.finish("completed")
            await here.until(lambda: not cluster.state.instances)
            assert cluster.room.held == WHOLE

    asyncio.run(run())


# Models and operators


def test_a_model_that_is_removed_while_it_loads_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, settings=FOR_EVER) as here:
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: engines_of(tmp_path))
            async with asyncio.timeout(10.0):
                await operations(here).remove("a")
            with pytest.raises(RefusedError, match="being removed"):
                await asking
            assert set(here.cluster.state.models) == {"b"}
            assert not here.cluster.state.instances
            assert here.cluster.room.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_removal_goes_on_when_the_operator_has_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            await loaded(here)
            seat = await here.cluster.reception.seat(Request("a"))
            removing = asyncio.create_task(operations(here).remove("a"))
            await here.until(lambda: here.phases("a") == ["leaving"])
            with pytest.raises(RefusedError, match="a is being removed") as refused:
                await operations(here).remove("a")
            assert refused.value.status == 409
            removing.cancel()
            seat.finish("completed")
            await here.until(lambda: "a" not in here.cluster.state.models)
            assert not here.cluster.reception.going

    asyncio.run(run())


def test_a_wish_is_granted_only_by_an_instance_that_is_ready(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A]) as here:
            await here.ask("a")
            [name] = here.cluster.state.instances
            seat = await here.cluster.reception.seat(Request("a"))
            here.cluster.start(Unload(name, "the test", drain=True))
            wish = asyncio.create_task(operations(here).load("a"))
            await asyncio.sleep(0)
            seat.finish("completed")  # the last of the old one, not the first of the new one
            told = await wish
            assert told["status"] == "ready"

    asyncio.run(run())


def test_wishes_end(tmp_path: Path) -> None:
    async def run() -> None:
        rules, large = Rules(max_wait_s=0.1), model("large", 600)
        async with house(tmp_path, [A, large], policy=Idle(), house=rules) as here:
            with pytest.raises(RefusedError, match=r"a was not ready within 0\.1 s") as late:
                await operations(here).load("a")
            with pytest.raises(RefusedError, match="It can never run here"):
                await operations(here).load("large")
            here.cluster.reception.house = Rules()
            wish = asyncio.create_task(operations(here).load("a"))
            await asyncio.sleep(0)
            here.cluster.reception.close("the server is stopping")
            with pytest.raises(RefusedError, match="stopping"):
                await wish
            with pytest.raises(RefusedError, match="stopping"):
                await operations(here).load("a")
            assert late.value.status == 503

    asyncio.run(run())


def test_a_second_copy_that_cannot_be_loaded_does_not_close_the_first(tmp_path: Path) -> None:
    async def run() -> None:
        few = Patience(tries=1)
        async with house(tmp_path, [A], 2, policy=Idle(), faults=True, patience=few) as here:
            await loaded(here)
            broken = {**INSTANT, "fault": "fail_start"}
            here.cluster.roster.put(replace(here.cluster.roster.served["a"], settings=broken))
            here.cluster.start(Load("a", ("n0g1",), "the test"))
            await here.until(lambda: here.cluster.failures.of("a"))
            assert await here.ask("a")

    asyncio.run(run())


# What breaks beside


class Breaks(EmulatedManager):
    """A manager with an error of its own."""

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        raise KeyError("version")


def test_an_error_of_a_manager_fails_the_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], patience=Patience(tries=1)) as here:
            here.cluster.managers = {"emulated": Breaks(folder=tmp_path / "engines")}
            with pytest.raises(RefusedError, match="a cannot be loaded: KeyError: 'version'"):
                async with asyncio.timeout(5.0):
                    await here.ask("a")
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.room.held == WHOLE

    asyncio.run(run())


class Told(PretendInventory):
    """What a driver would tell: the memory of processes, whoever started them."""

    pretend = False
    broken = 0

    def read(self) -> dict[int, Reading]:
        if self.broken:
            self.broken -= 1
            raise OSError("no such device")
        return super().read()


def test_gpus_are_looked_at_again_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GPUS_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "AGAIN_S", 0.05)

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
            inventory.hold(pid, psutil.Process(pid).create_time(), 0, 40 << 30)
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


class Survives(EmulatedManager):
    """Engines that nothing can end."""

    immortal = True

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        if self.immortal:
            raise EngineError(f"{engine.instance} survives")
        super().stop(engine, grace_s)


def test_a_lost_engine_that_cannot_be_ended_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.live.transitions.STOP_AGAIN_S", 0.0)

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
    monkeypatch.setattr("modelium.live.transitions.STOP_AGAIN_S", 0.0)
    monkeypatch.setattr("modelium.live.transitions.SURVIVOR_AGAIN_S", 0.05)

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
                await here.cluster.reception.seat(Request("a"), told)
            assert not here.cluster.reception.room.waiting("a")

    asyncio.run(run())


def test_a_second_signal_ends_the_wait_for_requests(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            cluster = here.cluster
            await loaded(here)
            await cluster.reception.seat(Request("a"))
            hurried = replace(cluster.deadlines, shutdown_s=0.0)
            cluster.loop.call_later(0.2, setattr, cluster, "deadlines", hurried)

    asyncio.run(asyncio.wait_for(run(), 10.0))
