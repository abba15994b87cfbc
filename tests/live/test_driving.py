"""A policy that breaks is told of and skipped; one that plans answers misses meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from modelium.core import Action, ClusterState, Event, Load, Miss, Outlook, Tick
from modelium.live import control_loop
from modelium.policies.lru import Lru
from modelium.policies.toolkit.diff import Target
from modelium.policies.toolkit.planned import Planned
from modelium.testing.scenarios import model
from tests.live.harness import QUIET_S
from tests.live.house import house
from tests.live.idle import Idle

A = model("a", 60)


class Stumbles:
    """Breaks at its first misses, each time otherwise; then it loads."""

    def __init__(self) -> None:
        self.misses = 0

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        if not isinstance(event, Miss):
            return
        self.misses += 1
        if self.misses == 1:
            raise ZeroDivisionError("by nothing")
        if self.misses == 2:
            yield cast(Action, "load a")
        yield Load(event.model, ("n0g0",), "at last")


def test_a_policy_that_breaks_is_told_of_and_skipped(tmp_path: Path) -> None:
    async def run() -> None:
        policy = Stumbles()
        async with house(tmp_path, [A], policy=policy) as here:
            first = asyncio.create_task(here.ask("a"))
            await here.until(lambda: policy.misses == 1)
            assert await here.ask("a")  # the next request offers the miss again
            assert await first
            assert here.driver.faults == 2
            why = [told["why"] for told in here.said("policy-fault")]
            assert why[0] == "ZeroDivisionError: by nothing"
            assert "'load a'" in why[1]  # and the action after it was done

    asyncio.run(run())


def test_misses_are_answered_while_a_plan_is_searched(tmp_path: Path) -> None:
    searching, go_on = threading.Event(), threading.Event()

    def plan(state: ClusterState) -> Callable[[], Any]:
        def search() -> Target:
            searching.set()
            assert go_on.wait(QUIET_S)
            return {"a": [], "b": [("n0g1",)]}

        return search

    async def run() -> None:
        policy = Planned(plan, None, fallback=Lru())
        models = [A, model("b", 60)]
        async with house(tmp_path, models, 2, policy=policy) as here:
            await here.until(searching.is_set)
            assert await here.ask("a")
            assert not here.said("plan")  # it is being searched still
            assert here.phases("b") == []
            go_on.set()
            await here.until(lambda: here.phases("b") == ["ready"])
            assert here.said("plan")
            assert here.phases("a") == ["ready"]  # what was done meanwhile stays

    try:
        asyncio.run(run())
    finally:
        go_on.set()


def test_a_search_that_breaks_is_told_of(tmp_path: Path) -> None:
    def plan(state: ClusterState) -> Callable[[], Any]:
        def search() -> Target:
            raise ValueError("no plan")

        return search

    async def run() -> None:
        policy = Planned(plan, 0.05, fallback=Lru())
        async with house(tmp_path, [A], policy=policy) as here:
            await here.until(lambda: here.driver.faults >= 2)  # each period anew
            assert here.said("policy-fault")[0]["why"] == "ValueError: no plan"
            assert await here.ask("a")

    asyncio.run(run())


def test_a_policy_that_is_exchanged_decides_no_more(tmp_path: Path) -> None:
    searching, go_on = threading.Event(), threading.Event()

    def plan(state: ClusterState) -> Callable[[], Any]:
        def search() -> Target:
            searching.set()
            assert go_on.wait(QUIET_S)
            return {"a": [("n0g0",)], "b": []}

        return search

    class Counts(Lru):
        ticks = 0

        def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
            self.ticks += isinstance(event, Tick)
            return super().decide(state, event)

    async def run() -> None:
        models = [A, model("b", 60)]
        async with house(tmp_path, models, policy=Planned(plan, None, fallback=Lru())) as here:
            await here.until(searching.is_set)
            later = Counts()
            later.every_s = 0.01
            here.driver.exchange(later)
            await here.until(lambda: later.ticks >= 3)  # the first had no period at all
            assert await here.ask("b")
            go_on.set()
            await here.until(lambda: here.said("plan"))
            assert here.phases("a") == []  # the plan of the one before is not carried out
            assert here.driver.faults == 0

    try:
        asyncio.run(run())
    finally:
        go_on.set()


def test_a_planner_that_takes_over_finds_its_first_plan_at_once(tmp_path: Path) -> None:
    searching, go_on = threading.Event(), threading.Event()

    def slow(state: ClusterState) -> Callable[[], Any]:
        def search() -> Target:
            searching.set()
            assert go_on.wait(QUIET_S)
            return {"a": [("n0g0",)], "b": []}

        return search

    def quick(state: ClusterState) -> Callable[[], Any]:
        return lambda: {"a": [], "b": [("n0g0",)]}

    async def run() -> None:
        models = [A, model("b", 60)]
        async with house(tmp_path, models, policy=Planned(slow, None, fallback=Lru())) as here:
            await here.until(searching.is_set)
            here.driver.exchange(Planned(quick, None, fallback=Lru()))
            await here.until(lambda: here.phases("b") == ["ready"])
            go_on.set()
            await here.until(lambda: len(here.said("plan")) == 2)
            assert here.phases("a") == []

    try:
        asyncio.run(run())
    finally:
        go_on.set()


def test_an_outlook_is_asked_of_the_policy_once_a_second(tmp_path: Path) -> None:
    class Tells(Idle):
        def __init__(self, says: float) -> None:
            self.asked: list[str] = []
            self.says = says

        def outlook(self, state: ClusterState, model: str) -> Outlook:
            self.asked.append(model)
            if model == "b":
                raise KeyError("b")
            return Outlook("whoever", self.says)

    async def run() -> None:
        policy, later = Tells(7.0), Tells(8.0)
        async with house(tmp_path, [A, model("b", 60)], policy=policy) as here:
            now_s = here.cluster.now_s()
            here.cluster.now_s = lambda: now_s  # type: ignore[method-assign]
            assert {here.cluster.left_s("a") for _ in range(100)} == {7.0}
            assert len({here.cluster.left_s("b") for _ in range(100)}) == 1
            assert policy.asked == ["a", "b"]
            assert [told["heard"] for told in here.said("policy-fault")] == ["outlook('b')"]
            now_s += control_loop.OUTLOOK_S + 0.1
            assert here.cluster.left_s("a") == 7.0
            assert policy.asked == ["a", "b", "a"]
            here.driver.exchange(later)
            assert here.cluster.left_s("a") == 8.0
            del here.cluster.now_s  # type: ignore[method-assign]

    asyncio.run(run())
