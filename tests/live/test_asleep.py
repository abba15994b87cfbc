"""What sleeping engines keep of their GPUs is seen, booked and learnt; none is ended for it."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modelium.core import Load, Sleep, Wake
from modelium.live.records.journal import Journal
from modelium.live.requests.interface import RefusedError
from modelium.testing.scenarios import model
from modelium.units import GIB
from tests.live.harness import INSTANT
from tests.live.house import House, engines_of, house
from tests.live.idle import Idle, loaded, operations

KEEPS_7 = {**INSTANT, "asleep_bytes": 7 * GIB}
A = model("a", 60)  # 68 GiB awake, 2 asleep by prediction
SMALL, LARGE = model("b", 60), model("b", 68)  # 68 and 76 GiB of 80


def books_are_right(here: House) -> None:
    """What is booked on a GPU, in three places, is one sum; and so is its end of the timeline."""
    cluster = here.cluster
    for name, gpu in cluster.state.all_gpus.items():
        on = [cluster.state.copy(copy.id) for copy in cluster.state.instances_on(name)]
        booked = sum(copy.bytes_per_gpu for copy in on)
        assert cluster.state.free_bytes(name) == gpu.memory_bytes - booked
        held = sum(cluster.lifecycle.held[copy.id] for copy in on)
        assert cluster.lifecycle.ledger.held[name] == held == booked


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_sleeper_that_keeps_7_gib_sleeps_on_and_is_booked_with_them(tmp_path: Path) -> None:
    async def first() -> None:
        async with house(
            tmp_path, [A, SMALL], policy=Idle(), settings=KEEPS_7, keep_engines=True
        ) as here:
            name = await loaded(here)
            [pid] = engines_of(tmp_path)
            assert (await operations(here).sleep("a"))["status"] == "asleep"
            copy = here.cluster.state.copy(name)
            assert (copy.bytes_per_gpu, copy.awake_bytes_per_gpu) == (7 * GIB, 68 * GIB)
            books_are_right(here)
            [told] = here.said("memory")
            assert told["why"] == "it keeps 7.0 GiB of each GPU asleep, 5.0 GiB more than predicted"
            assert here.cluster.state.models["a"].asleep_bytes == 7 * GIB
            assert here.cluster.state.models["b"].asleep_bytes == 2 * GIB
            await operations(here).wake("a")  # it needs only the rest
            assert here.cluster.state.free_bytes("n0g0") == 12 * GIB
            books_are_right(here)
            await operations(here).sleep("a")  # as it was predicted: nothing more to say
            assert len(here.said("memory")) == 1
            assert engines_of(tmp_path) == [pid]
        with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
            asleep = db.execute("SELECT value FROM timeline WHERE kind = 'asleep'").fetchall()
        assert {size for (size,) in asleep} == {7.0 * GIB}

    async def second() -> None:
        async with house(tmp_path, [A, SMALL], policy=Idle(), settings=KEEPS_7) as here:
            [copy] = here.cluster.state.instances.values()
            assert (copy.phase, copy.bytes_per_gpu) == ("asleep", 7 * GIB)
            assert here.cluster.state.models["a"].asleep_bytes == 7 * GIB
            books_are_right(here)
            await loaded(here, "b")
            assert here.phases("a") == ["asleep"]
            books_are_right(here)

    asyncio.run(first())
    gc.collect()
    asyncio.run(second())
    assert engines_of(tmp_path) == []


def test_a_sleeper_leaves_if_what_it_kept_was_promised_to_a_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A, LARGE], policy=Idle(), settings=KEEPS_7) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            here.cluster.start(Load("b", ("n0g0",), "the test"))
            await here.until(lambda: here.phases("b") == ["ready"])
            assert here.phases("a") == []
            kinds = [line.kind for _, line in here.cluster.decisions]
            assert kinds == ["load", "sleep", "load", "unload"]
            line = here.cluster.decisions[-1][1]
            assert line.reason == (
                "it keeps 5.0 GiB more asleep than predicted, and b#2 waits for it"
            )
            assert not line.error
            assert not here.said("lost")
            books_are_right(here)

    asyncio.run(run())


def test_where_the_sleeper_may_not_leave_the_load_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A, LARGE], policy=Idle(), settings=KEEPS_7) as here:
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            here.cluster.start(Load("b", ("n0g0",), "the test"))
            _, load = here.cluster.decisions[-1]
            here.cluster.registry.pin("a", True)
            await here.until(lambda: load.error)
            assert load.error == (
                f"no room: {name} keeps 5.0 GiB more asleep than predicted, and a is pinned"
            )
            assert here.phases("a") == ["asleep"]
            await here.until(lambda: not here.phases("b"))
            books_are_right(here)

    asyncio.run(run())


def test_a_wake_that_the_kept_memory_was_promised_to_comes_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A, LARGE], policy=Idle(), settings=KEEPS_7) as here:
            # b sleeps as predicted: it leaves 78 GiB, of which a takes 68.
            here.cluster.served["b"] = replace(here.cluster.served["b"], settings=INSTANT)
            sleeper = await loaded(here, "b")
            await operations(here).sleep("b", 2)
            name = await loaded(here)
            here.cluster.start(Sleep(name, 1, "the test"))
            here.cluster.start(Wake(sleeper, "the test"))
            await here.until(lambda: here.phases("b") == ["ready"])
            assert here.phases("a") == []
            books_are_right(here)

    asyncio.run(run())


def test_a_journal_of_before_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(path).close("stopped")
    with sqlite3.connect(path) as db:  # as the versions before left it
        db.execute("DROP TABLE asleep")
        db.execute("ALTER TABLE engines DROP COLUMN asleep_bytes")
        db.execute(
            "INSERT INTO engines (instance, run, model, runtime, gpus, bytes_per_gpu, phase,"
            " sleep_level, began) VALUES ('a#3', 1, 'a', 'emulated', '[\"gpu0\"]', 9, 'asleep', 1,"
            " 0)"
        )
    journal = Journal(path)
    [record] = journal.alive()
    assert (record.instance, record.sleep_level, record.asleep_bytes) == ("a#3", 1, None)
    assert journal.asleep() == {}
    journal.learnt_asleep("a", "h100-80g", 5)
    assert journal.asleep() == {("a", "h100-80g"): 5}
    journal.forget_learnt("a")
    assert journal.asleep() == {}


def test_an_engine_without_sleep_mode_is_not_put_to_sleep_and_the_way_out_is_told(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            name = await loaded(here)
            engine = here.cluster.engines[name]
            here.cluster.engines[name] = replace(engine, extra={"sleep_mode": False})
            with pytest.raises(RefusedError, match=r"vllm: \{sleep_mode: true\}") as refused:
                await operations(here).sleep("a")
            assert refused.value.status == 409
            assert here.phases("a") == ["ready"]
            here.cluster.start(Sleep(name, 1, "the policy"))  # it asked for room: it gets it
            await here.until(lambda: not here.phases("a"))
            assert "; unloaded: a#1 was started without" in here.cluster.decisions[-1][1].reason
            here.cluster.engines.clear()

    asyncio.run(run())
