"""Models that come, change and go, and what operators wish, at awkward moments."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from modelium.core import Limits, Load, Model, Unload
from modelium.live.engines.backoff import Patience
from modelium.live.models import PINS
from modelium.live.requests.dispatcher import DispatchSettings as Rules
from modelium.live.requests.interface import RefusedError, Request
from modelium.testing.scenarios import model, nodes_of
from tests.live.harness import INSTANT, QUIET_S
from tests.live.house import engines_of, house
from tests.live.idle import FOR_EVER, TWO, WHOLE, A, Idle, Told, loaded, operations
from tests.live.test_full_disk import full


def test_a_model_that_is_removed_while_it_loads_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, settings=FOR_EVER) as here:
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: engines_of(tmp_path))
            async with asyncio.timeout(QUIET_S):
                await operations(here).remove("a")
            with pytest.raises(RefusedError, match="being removed"):
                await asking
            assert set(here.cluster.state.models) == {"b"}
            assert not here.cluster.state.instances
            assert here.cluster.lifecycle.ledger.held == WHOLE

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_removal_goes_on_when_the_operator_has_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            await loaded(here)
            seat = await here.cluster.dispatcher.seat(Request("a"))
            removing = asyncio.create_task(operations(here).remove("a"))
            await here.until(lambda: here.phases("a") == ["leaving"])
            with pytest.raises(RefusedError, match="a is being removed") as refused:
                await operations(here).remove("a")
            assert refused.value.status == 409
            removing.cancel()
            seat.finish("completed")
            await here.until(lambda: "a" not in here.cluster.state.models)
            assert not here.cluster.dispatcher.going

    asyncio.run(run())


@pytest.mark.parametrize("policy", ["lru", "static"])
@pytest.mark.parametrize(
    ("one", "limits"),
    [
        (replace(A, pinned=True), Limits()),
        (replace(A, min_replicas=1), Limits()),
        (A, Limits(min_residency_s=1e6)),
    ],
    ids=["pinned", "needed", "ready a moment ago"],
)
def test_rules_for_policies_keep_no_model_that_is_to_go(
    tmp_path: Path, one: Model, limits: Limits, policy: str
) -> None:
    async def run() -> None:
        async with asyncio.timeout(QUIET_S):
            async with house(tmp_path, [one], policy=policy, limits=limits) as here:
                cluster = here.cluster
                if policy == "lru":
                    assert await here.ask("a")
                await here.until(lambda: here.phases("a") == ["ready"])
                await operations(here).withdraw("a")
                assert not here.said("removal-failed")
                assert not cluster.state.models
                assert not cluster.state.instances
                loads = [end for end in here.said("done") if end["kind"] == "load"]
                assert len(loads) == 1, "nothing was loaded again meanwhile"

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_model_that_cannot_go_stays_as_it_was(tmp_path: Path) -> None:
    one = replace(A, min_replicas=1)

    async def run() -> None:
        async with house(tmp_path, [one], policy=Idle()) as here:
            await loaded(here)
            operations(here).pin("a")
            with full(here.cluster):
                with pytest.raises(RefusedError, match="the journal cannot be used"):
                    await operations(here).remove("a")
                await operations(here).withdraw("a")
                [told] = here.said("removal-failed")
                assert told["model"] == "a"
                assert "the journal cannot be used" in told["why"]
                assert await here.ask("a")
            assert here.cluster.state.models["a"] == replace(one, pinned=True)
            assert here.cluster.journal.kept(PINS) == {"a": True}
            await operations(here).remove("a")
            assert not here.cluster.state.models

    asyncio.run(run())


def test_the_next_model_of_a_removed_ones_name_starts_afresh(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, TWO, policy=Idle()) as here:
            cluster = here.cluster
            served = cluster.served["a"]
            for name in ("a", "b"):
                operations(here).pin(name)
                cluster.learnt.took(name, "disk", 9.0)
            await operations(here).remove("a")
            assert cluster.journal.kept(PINS) == {"b": True}
            assert cluster.learnt.durations == {("b", "disk"): 9.0}
            cluster.registry.put(served)
            assert cluster.state.models["a"] == A

    asyncio.run(run())


def test_whoever_breaks_when_told_hurts_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*about: object) -> None:
        raise OSError("the disk is full")

    async def run() -> None:
        async with house(tmp_path, [A]) as here:
            watchers = here.cluster.watchers
            for who in (watchers.news, watchers.events, watchers.over, watchers.refused):
                who.insert(0, broken)
            assert await here.ask("a")
            with pytest.raises(RefusedError):
                await here.ask("nobody")
            assert here.said("decision")

    asyncio.run(run())
    assert engines_of(tmp_path) == []
    # Each is told many things and breaks each time, and is logged once.
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == [
        "its next failures are not logged"
    ] * 4
    assert caplog.text.count("OSError: the disk is full") == 4


def test_decisions_that_are_not_in_memory_any_more_are_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.live.cluster.KEPT_DECISIONS", 3)

    async def run() -> None:
        async with house(tmp_path, TWO) as here:
            hands = operations(here)
            for name in "abab":
                await here.ask(name)
            here.cluster.start(Load("a", ("n0g0",), "the test"))  # which is refused
            ended = {about["at_s"]: about for about in here.said("done")}
            all_of_them = [ended.get(about["at_s"], about) for about in here.said("decision")]
            newest_first = all_of_them[::-1]
            assert len(newest_first) == 8
            assert newest_first[0]["error"]
            assert await hands.decisions() == newest_first
            assert await hands.decisions(limit=5) == newest_first[:5]
            assert await hands.decisions(limit=2) == newest_first[:2]
            of_a = [line for line in newest_first if line["model"] == "a"]
            assert await hands.decisions("a") == of_a
            assert await hands.decisions("a", 3) == of_a[:3]
            assert await hands.decisions("c") == []

    asyncio.run(run())


def test_nothing_is_kept_of_what_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*about: object) -> None:
        raise OSError("the client has gone")

    monkeypatch.setattr("modelium.live.engines.unwanted_loads.AGAIN_S", 0.0)

    async def run() -> None:
        async with house(tmp_path, TWO, held=True) as here:
            cluster, hands = here.cluster, operations(here)
            for name in ("a", "b"):  # clients that give up before it is loaded
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await here.ask(name)
                await here.until(lambda: not cluster.state.instances)
            assert cluster.unwanted_loads._cancelled_s.keys() == {"b"}
            stop = hands.subscribe(broken)
            here.go.set()
            await hands.load("a")
            stop()
            assert cluster.watchers.news._broken == []
            assert (await hands.update("a"))["updated"] == ["a is up to date"]
            assert not hands._replacing
            await hands.remove("a")
            assert cluster.dispatcher.most_running.keys() == {"b"}

    asyncio.run(run())
    assert engines_of(tmp_path) == []


def test_a_need_is_learnt_for_a_kv_pool_of_the_usual_size(tmp_path: Path) -> None:
    a = replace(A, kv_bytes=10 << 30)

    async def run() -> None:
        inventory = Told(nodes_of(1)[0])
        inventory.pretend = False  # so that what is read is believed
        async with house(tmp_path, [a], policy=Idle(), inventory=inventory) as here:
            here.cluster.start(Load("a", ("n0g0",), "the test", kv_bytes=2 << 30))
            await here.until(lambda: here.cluster.learnt.needs)
            assert set(here.cluster.learnt.needs.values()) == {a.bytes_per_gpu()}

    asyncio.run(run())


def test_a_wish_is_granted_only_by_an_instance_that_is_ready(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A]) as here:
            await here.ask("a")
            [name] = here.cluster.state.instances
            seat = await here.cluster.dispatcher.seat(Request("a"))
            here.cluster.start(Unload(name, "the test", drain=True))
            wish = asyncio.create_task(operations(here).load("a"))
            await asyncio.sleep(0)
            seat.finish("completed")  # the last of the old one, not the first of the new one
            told = await wish
            assert told["status"] == "ready"

    asyncio.run(run())


def test_a_wish_is_granted_once_an_instance_in_its_way_falls_idle(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(QUIET_S), house(tmp_path, TWO) as here:
            await here.ask("a")
            seat = await here.cluster.dispatcher.seat(Request("a"))
            wish = asyncio.create_task(operations(here).load("b"))
            await here.until(lambda: here.cluster.dispatcher.wanted)
            seat.finish("completed")  # nobody but the operator waits for b
            assert (await wish)["status"] == "ready"

    asyncio.run(run())


def test_wishes_end(tmp_path: Path) -> None:
    async def run() -> None:
        rules, large = Rules(max_wait_s=0.1), model("large", 600)
        async with house(tmp_path, [A, large], policy=Idle(), dispatch=rules) as here:
            with pytest.raises(RefusedError, match=r"a was not ready within 0\.1 s") as late:
                await operations(here).load("a")
            with pytest.raises(RefusedError, match="It can never run here"):
                await operations(here).load("large")
            here.cluster.dispatcher.settings = Rules()
            wish = asyncio.create_task(operations(here).load("a"))
            await asyncio.sleep(0)
            here.cluster.dispatcher.close("the server is stopping")
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
            here.cluster.registry.put(replace(here.cluster.served["a"], settings=broken))
            here.cluster.start(Load("a", ("n0g1",), "the test"))
            await here.until(lambda: here.cluster.failures.of("a"))
            assert await here.ask("a")

    asyncio.run(run())


def test_an_unload_that_ends_with_the_removal_of_its_model_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [A], policy=Idle()) as here:
            await loaded(here)
            seat = await here.cluster.dispatcher.seat(Request("a"))
            unloading = asyncio.create_task(operations(here).unload("a"))
            await here.until(lambda: here.phases("a") == ["leaving"])
            removing = asyncio.create_task(operations(here).withdraw("a"))
            await asyncio.sleep(0)
            seat.finish("completed")
            await removing
            with pytest.raises(RefusedError, match="no model called 'a'") as gone:
                await unloading
            assert gone.value.status == 404

    asyncio.run(run())
