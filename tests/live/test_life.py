"""Models come and go by the policy; a restart adopts what runs; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from modelium.live.engines.backoff import Patience
from modelium.live.records.export import read_run
from modelium.live.records.journal import Journal
from modelium.live.requests.interface import RefusedError, Request, Waiting
from modelium.live.settings import Deadlines
from modelium.managers.engine import Engine
from modelium.policies.toolkit.planned import Planned
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT, NEVER_S
from tests.live.house import UNPROBED, House, engines_of, frozen, house
from tests.live.idle import operations

SLOW = {**INSTANT, "stages": {"process": 0.2, "weights": 0.3}, "speed": 1.0}
TWO = [model("a", 60), model("b", 60)]


def test_models_take_turns_where_there_is_room_for_one(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO) as here:
            for name in "abab":
                assert await here.ask(name)
                assert here.phases(name) == ["ready"]
            kinds = [line.kind for _, line in here.cluster.decisions]
            assert kinds == ["load", "unload", "load", "unload", "load", "unload", "load"]
            assert all(line.reason for _, line in here.cluster.decisions)
            assert here.cluster.state.free_bytes("n0g0") == 12 << 30
        assert here.cluster.lifecycle.ledger.held == {"n0g0": 0}

    asyncio.run(run())
    assert engines_of(tmp_path) == []
    run_ = read_run(tmp_path / "journal.db")
    assert run_.summary["requests"]["completed"] == 4
    assert (run_.summary["loads"], run_.summary["unloads"]) == (4, 3)
    assert run_.summary["cold_starts"]["requests"] == 4


def test_a_thousand_clients_at_a_cold_model_are_all_answered_by_one_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [model("a", 60)], settings=SLOW) as here:
            answers = await asyncio.gather(*(here.ask("a") for _ in range(1000)))
            assert len(answers) == 1000
            assert [line.kind for _, line in here.cluster.decisions] == ["load"]

    asyncio.run(run())


def test_who_waits_is_told_where_it_stands(tmp_path: Path) -> None:
    told: list[Waiting] = []

    async def run() -> None:
        async with house(tmp_path, [model("a", 60)], settings=SLOW) as here:
            seat = await here.cluster.dispatcher.seat(Request("a"), told.append)
            seat.finish("completed")

    asyncio.run(run())
    assert told[0].position == 1
    assert told[0].left_s is not None


kept = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
"""Engines that outlive an executor are, in these tests, children of one process."""


@kept
def test_engines_that_are_kept_are_adopted(tmp_path: Path) -> None:
    async def first() -> set[int]:
        async with house(tmp_path, TWO, 2, keep_engines=True) as here:
            await here.ask("a")
            await here.ask("b")
        return {e.process.pid for e in here.cluster.engines.values() if e.process}

    async def second() -> None:
        async with house(tmp_path, TWO, 2) as here:
            assert {c.model for c in here.cluster.state.instances.values()} == {"a", "b"}
            assert {e.process.pid for e in here.cluster.engines.values() if e.process} == before
            await here.ask("a")
            assert len(here.cluster.decisions) == 0  # it was there
            await here.ask("b")

    before = asyncio.run(first())
    gc.collect()
    assert set(engines_of(tmp_path)) == before
    asyncio.run(second())
    assert engines_of(tmp_path) == []
    names = [
        line[0]
        for line in Journal(tmp_path / "journal.db")._db.execute("SELECT instance FROM engines")
    ]
    assert len(names) == len(set(names)) == 2


@kept
def test_an_engine_that_died_meanwhile_is_not_adopted(tmp_path: Path) -> None:
    async def first() -> None:
        async with house(tmp_path, TWO, keep_engines=True) as here:
            await here.ask("a")

    async def second() -> None:
        async with house(tmp_path, TWO) as here:
            assert not here.cluster.state.instances
            await here.ask("a")

    asyncio.run(first())
    gc.collect()
    [pid] = engines_of(tmp_path)
    os.killpg(pid, signal.SIGKILL)
    asyncio.run(second())
    assert engines_of(tmp_path) == []


def test_a_killed_engine_is_found_and_its_requests_are_served_by_the_next(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [model("a", 60)]) as here:
            await here.ask("a")
            [engine] = here.cluster.engines.values()
            assert engine.process is not None
            os.killpg(engine.process.pid, signal.SIGKILL)
            answers = await asyncio.gather(*(here.ask_again("a") for _ in range(20)))
            assert all(answers)
            [now] = here.cluster.engines.values()
            assert now.instance != engine.instance
            assert here.cluster.state.free_bytes("n0g0") == 12 << 30

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_an_idle_engine_that_dies_leaves_the_books(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [model("a", 60)]) as here:
            await here.ask("a")
            [pid] = engines_of(tmp_path)
            os.killpg(pid, signal.SIGKILL)
            await here.until(lambda: not here.cluster.state.instances)
            assert here.cluster.lifecycle.ledger.held == {"n0g0": 0}
            assert here.said("lost")

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_given_up_with_its_cause(tmp_path: Path) -> None:
    async def run() -> None:
        broken = {**INSTANT, "fault": "fail_start"}
        patience = Patience(tries=2, first_s=0.05)
        async with house(
            tmp_path, [model("a", 60)], 2, settings=broken, faults=True, patience=patience
        ) as here:
            with pytest.raises(RefusedError, match="a cannot be loaded") as refused:
                await here.ask("a")
            assert refused.value.status == 503
            assert refused.value.retry_after_s == pytest.approx(patience.forgive_s, rel=0.1)
            # What an engine writes is for operators.
            assert "it wrote" not in str(refused.value)
            [row] = operations(here).models()
            assert row["log"]
            tried = [line.gpus for _, line in here.cluster.decisions]
            assert sorted(tried) == [("n0g0",), ("n0g1",)]  # the second try is elsewhere
            with pytest.raises(RefusedError, match="a cannot be loaded"):
                await here.ask("a")  # at once, without another try
            assert len(here.cluster.decisions) == 2
            assert not here.cluster.state.instances
            with pytest.raises(RefusedError) as told:
                await operations(here).load("a")
            assert row["log"].strip()[-50:] in str(told.value)

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_plan_does_not_load_what_rests_after_a_failure(tmp_path: Path) -> None:
    """The plan wants it whatever comes of it, and is asked again and again."""

    async def run() -> None:
        broken = {**INSTANT, "fault": "fail_start"}
        patience = Patience(tries=2, first_s=0.05)
        wants = Planned(lambda state: {"a": [("n0g0",)]}, every_s=0.02)
        async with house(
            tmp_path, [model("a", 60)], policy=wants, settings=broken, faults=True,
            patience=patience,
        ) as here:  # fmt: skip

            def ended() -> list[str]:
                return [line.error for _, line in here.cluster.decisions if line.error]

            await here.until(lambda: len(ended()) > 20)
            tried = [why for why in ended() if "rests after a failed load for" not in why]
            assert len(tried) == patience.tries
            assert not here.cluster.state.instances
            with pytest.raises(RefusedError):
                await operations(here).load("a")  # an operator need not wait

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_what_another_try_cannot_change_is_tried_once(tmp_path: Path) -> None:
    async def run() -> None:
        odd = {**INSTANT, "no_such_setting": 1}
        async with house(tmp_path, [model("a", 60)], 2, settings=odd) as here:
            with pytest.raises(RefusedError, match=r"a cannot be loaded: .*no_such_setting"):
                await here.ask("a")
            assert len(here.cluster.decisions) == 1

    asyncio.run(run())


def test_a_load_that_ran_out_of_memory_makes_more_room_and_is_tried_once_more(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        hungry = {**INSTANT, "fault": "out_of_memory"}
        resting = Patience(first_s=NEVER_S)  # would never be over
        async with house(
            tmp_path, [model("a", 60)], settings=hungry, faults=True, patience=resting
        ) as here:
            before = here.cluster.state.models["a"].bytes_per_gpu()
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: len(here.cluster.decisions) == 2)
            assert here.cluster.state.models["a"].bytes_per_gpu() > before
            assert [line.kind for _, line in here.cluster.decisions] == ["load", "load"]
            asking.cancel()

    asyncio.run(run())


def test_a_load_past_its_deadline_fails(tmp_path: Path) -> None:
    async def run() -> None:
        for_ever = {**INSTANT, "stages": {"process": 0.0, "weights": 1000.0}, "speed": 1.0}
        once = Patience(first_s=NEVER_S)
        deadlines = Deadlines(load_s=0.5, stop_grace_s=1.0)
        async with house(
            tmp_path, [model("a", 60)], settings=for_ever, deadlines=deadlines, patience=once
        ) as here:
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: any(line.error for _, line in here.cluster.decisions))
            [(_, line)] = here.cluster.decisions
            assert "0.5 s" in line.error
            await here.until(lambda: here.cluster.lifecycle.ledger.held == {"n0g0": 0})
            asking.cancel()

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_the_end_comes_in_order_while_loads_are_under_way(tmp_path: Path) -> None:
    async def run() -> None:
        for_ever = {**INSTANT, "stages": {"process": 0.0, "weights": 1000.0}, "speed": 1.0}
        async with house(tmp_path, TWO, 2, settings=for_ever) as here:
            asking = [asyncio.create_task(here.ask(name)) for name in "ab"]
            await here.until(lambda: len(engines_of(tmp_path)) == 2)
        for task in asking:
            with pytest.raises(RefusedError, match="stopping"):
                await task

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_requests_in_flight_finish_before_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        patient = replace(UNPROBED, shutdown_s=NEVER_S)
        async with house(tmp_path, [model("a", 60)], deadlines=patient) as here:
            await here.ask("a")
            [engine] = here.cluster.engines.values()
            asking = asyncio.create_task(ask_at_the_end(here, engine))
            await here.until(lambda: len(here.cluster.dispatcher.seats) == 5)
        assert all(await asking)

    async def ask_at_the_end(here: House, engine: Engine) -> list[str]:
        """The engine works again when the end has begun."""
        with frozen(engine):
            asking = [asyncio.create_task(here.ask("a")) for _ in range(5)]
            await here.until(lambda: here.cluster.dispatcher.closed)
            assert not any(asked.done() for asked in asking)
        return await asyncio.gather(*asking)

    asyncio.run(run())


def test_a_hung_engine_is_killed_and_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        deadlines = Deadlines(stall_s=0.3, probe_every_s=0.3, stop_grace_s=0.5)
        async with house(tmp_path, [model("a", 60)], faults=True, deadlines=deadlines) as here:
            await here.ask("a")
            [engine] = here.cluster.engines.values()
            async with here.http.post(f"{engine.url}/faults", json={"kind": "hang"}) as answer:
                answer.raise_for_status()
            with pytest.raises(aiohttp.ClientError):
                await here.ask("a")  # its connection ends when the engine is killed
            assert await here.ask_again("a")
            [now] = here.cluster.engines.values()
            assert now.instance != engine.instance

    asyncio.run(run())
    assert engines_of(tmp_path) == []
