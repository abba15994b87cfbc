"""The control loop, live: `modelium.core.drive`, with plans searched in a thread.

A policy that plans (`modelium.core.Planner`) answers misses while its next plan is being searched.
A policy that breaks is told of and skipped: engines and requests go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from modelium.core import (
    Action,
    Event,
    Outlook,
    Planner,
    Policy,
    Tick,
    as_foreteller,
    as_planner,
    traits,
)
from modelium.live.cluster import LiveCluster

OUTLOOK_S = 1.0
"""How old an outlook may be: every request that waits wants one, and it takes long to find."""


class ControlLoop:
    """Lets one policy run one live cluster; `policy` may be exchanged at any time."""

    def __init__(self, cluster: LiveCluster, policy: Policy) -> None:
        self.cluster = cluster
        self.policy = policy
        self.faults = 0
        """Decisions that ended in an exception."""
        self._searching: Policy | None = None
        """Whose next plan is being searched."""
        self._outlooks: dict[str, Outlook | None] = {}
        """By model, all found within `OUTLOOK_S`."""
        self._outlooks_since_s = 0.0
        self._exchanged = asyncio.Event()
        cluster.channel.answers_misses = traits(policy).answers_misses
        cluster.outlook = self._outlook
        cluster.listen(self._hear)

    def exchange(self, policy: Policy) -> None:
        """Let another policy decide from now on; it hears a tick at once."""
        self.policy = policy
        self._outlooks.clear()
        self.cluster.channel.answers_misses = traits(policy).answers_misses
        self._exchanged.set()

    async def tick(self) -> None:
        """Send the first tick, and then one each period of the policy, for ever."""
        while True:
            self._exchanged.clear()
            self.cluster.tell(Tick())
            every_s = traits(self.policy).every_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._exchanged.wait()

    def _outlook(self, model: str) -> Outlook | None:
        """What the policy tells now, or told within the last second."""
        now_s = self.cluster.now_s()
        if now_s - self._outlooks_since_s > OUTLOOK_S:
            self._outlooks.clear()
            self._outlooks_since_s = now_s
        if model not in self._outlooks:
            self._outlooks[model] = self._ask_outlook(model)
        return self._outlooks[model]

    def _ask_outlook(self, model: str) -> Outlook | None:
        foreteller = as_foreteller(self.policy)
        if foreteller is None:
            return None
        try:
            return foreteller.outlook(self.cluster.state, model)
        except Exception as error:
            self._broke(f"outlook({model!r})", error)
            return None

    def _hear(self, event: Event) -> None:
        planner = as_planner(self.policy)
        if isinstance(event, Tick) and planner is not None:
            self._plan(event, planner)
        else:
            self._do(event, lambda: self.policy.decide(self.cluster.state, event))

    def _plan(self, event: Tick, policy: Planner) -> None:
        """Begin to search the policy's next plan, if one is due and none is being searched."""
        if self._searching is policy:
            return
        search = self._guarded(event, lambda: policy.pose(self.cluster.state))
        if search is None:
            self._do(event, lambda: policy.decide(self.cluster.state, event))
        else:
            self._searching = policy  # what another one searched for is not wanted any more
            self.cluster.spawn(self._find(event, policy, search))

    async def _find(self, event: Tick, policy: Planner, search: Callable[[], Any]) -> None:
        begun_s = time.perf_counter()
        try:
            thought = await self.cluster.call(search)
        except Exception as error:
            self._broke(event, error)
            return
        finally:
            if self._searching is policy:
                self._searching = None
        self.cluster.tell_news("plan", seconds=time.perf_counter() - begun_s)
        exchanged = policy is not self.policy
        if not exchanged:
            self._do(event, lambda: policy.adopt(self.cluster.state, thought))

    def _do(self, event: Event, decide: Callable[[], Iterable[Action]]) -> None:
        begun_s = time.perf_counter()
        # Materialised first: a generator would see the state change under its feet.
        actions = self._guarded(event, lambda: tuple(decide()))
        self.cluster.tell_news(
            "decide", heard=type(event).__name__.lower(), seconds=time.perf_counter() - begun_s
        )
        for action in actions or ():
            self._guarded(event, partial(self.cluster.start, action))

    def _guarded(self, event: Event, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:
            self._broke(event, error)
            return None

    def _broke(self, asked: Event | str, error: Exception) -> None:
        self.faults += 1
        why = f"{type(error).__name__}: {error}"
        self.cluster.tell_news("policy-fault", heard=str(asked), why=why)
