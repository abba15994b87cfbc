"""Loads and wakes under way: what was ordered, how far it is, how long it will take."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from modelium.control.state import Copy
from modelium.core import GOING, Instance, Outlook, Phase
from modelium.managers.engine import Progress
from modelium.units import counted, format_seconds

if TYPE_CHECKING:
    from modelium.live.context import LiveContext

T = TypeVar("T")
LEAST_LEFT_S = 1.0
"""What is late by its estimate takes a while longer."""


@dataclass
class PendingLoad:
    """One load or wake."""

    begun_s: float
    expected_s: float
    progress: Progress
    """For the manager, from its thread."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    stage: str = "queued"
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """As `cancelled`, for the event loop."""

    def left_s(self, now_s: float) -> float:
        """Seconds to go, by the estimate."""
        return max(LEAST_LEFT_S, self.begun_s + self.expected_s - now_s)

    def share(self, now_s: float) -> float:
        """The share that is done, by the estimate; never all of it."""
        return min(0.99, (now_s - self.begun_s) / max(self.expected_s, 1e-9))

    def cancel(self) -> None:
        """Whoever brings it up should stop."""
        self.cancelled.set()
        self.stopped.set()

    async def unless_cancelled(self, work: asyncio.Task[T]) -> None:
        """Wait for `work`, which cannot be stopped, but no longer than until this is cancelled."""
        stopped = asyncio.ensure_future(self.stopped.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        work.add_done_callback(lambda task: task.cancelled() or task.exception())


class PendingLoads:
    """All that is under way, by instance."""

    def __init__(self, cluster: LiveContext) -> None:
        self._cluster = cluster
        self._coming: dict[str, PendingLoad] = {}

    def expect(self, copy: Copy, seconds: float) -> PendingLoad:
        """A load or wake of `copy` begins now."""
        loop = self._cluster.loop

        def progress(stage: str, share: float) -> None:
            loop.call_soon_threadsafe(self._progressed, copy.id, stage, share)

        self._coming[copy.id] = PendingLoad(self._cluster.now_s(), seconds, progress)
        return self._coming[copy.id]

    def over(self, copy: Copy) -> None:
        """It is here, or has failed."""
        self._coming.pop(copy.id, None)

    def cancel(self, copy: Copy) -> None:
        """Tell its manager to give up."""
        if coming := self._coming.get(copy.id):
            coming.cancel()

    def of(self, copy_id: str) -> PendingLoad | None:
        """What is known of one instance's load or wake."""
        return self._coming.get(copy_id)

    def left_s(self, model: str) -> float | None:
        """Seconds until an instance is expected to be ready; None if nobody can tell."""
        return self.outlook(model).left_s

    def outlook(self, model: str) -> Outlook:
        """Whom requests for a model wait for, and how long still."""
        cluster, now_s = self._cluster, self._cluster.now_s()
        copies = list(cluster.state.instances_of(model))
        if any(copy.phase is Phase.READY for copy in copies):
            return Outlook("", 0.0)
        if here := [c.left_s(now_s) for copy in copies if (c := self._coming.get(copy.id))]:
            return Outlook("", min(here))
        if rooms := [copy for copy in copies if copy.id in cluster.waits_for_room]:
            return Outlook(self._room_for(rooms[0]), min(map(self._enters_s, rooms)))
        rests_s = cluster.failures.left_s(model)
        told = cluster.outlook(model) or Outlook("", self._start_s(model))
        left_s = None if told.left_s is None else max(rests_s, told.left_s)
        why = (
            f"rests after a failed load for {format_seconds(rests_s)}" if rests_s > 0 else told.why
        )
        return Outlook(why, left_s)

    def _room_for(self, copy: Instance) -> str:
        """Which instances have to leave before a load or wake can go on."""
        state = self._cluster.state
        leaving = {
            other.id: other.running + other.waiting
            for gpu in copy.gpus
            for other in state.instances_on(gpu)
            if other.phase in GOING
        }
        names = ", ".join(
            f"{name} ({counted(requests, 'request')} left)" if requests else name
            for name, requests in leaving.items()
        )
        return f"is next on {', '.join(copy.gpus)}: waits for {names} to leave" if names else ""

    def _enters_s(self, copy: Instance) -> float:
        costs = self._cluster.state.costs
        wakes = copy.phase in (Phase.WAKING, Phase.ASLEEP)
        return costs.wake_s(copy.id) if wakes else costs.load_s(copy.model, copy.gpus)

    def _start_s(self, model: str) -> float | None:
        """Seconds to wake or load it, were there room; None if there are too few GPUs."""
        state = self._cluster.state
        asleep = [c for c in state.instances_of(model) if c.phase is Phase.ASLEEP]
        if asleep:
            return min(map(self._enters_s, asleep))
        spec = state.models[model]
        some = tuple(filter(spec.may_use, state.gpus))[: spec.gpus]
        return state.costs.load_s(model, some) if len(some) == spec.gpus else None

    def stage_of(self, model: str) -> tuple[str, float]:
        """The stage of a model's load and the share of the load that is done."""
        for copy in self._cluster.state.instances_of(model):
            if coming := self._coming.get(copy.id):
                return coming.stage, coming.share(self._cluster.now_s())
        return "queued", 0.0

    def _progressed(self, copy_id: str, stage: str, share: float) -> None:
        if coming := self._coming.get(copy_id):
            coming.stage = stage
            self._cluster.tell_news("progress", instance=copy_id, stage=stage, share=share)
