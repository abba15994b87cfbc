"""Loads and wakes under way: what was ordered, how far it is, how long it will take."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from modelium.managers.engine import Order, Progress
from modelium.state import Copy

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

T = TypeVar("T")
LEAST_LEFT_S = 1.0
"""What is late by its estimate takes a while longer."""


@dataclass
class Coming:
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


class Arrivals:
    """All that is under way, by instance."""

    def __init__(self, cluster: LiveCluster) -> None:
        self._cluster = cluster
        self._coming: dict[str, Coming] = {}

    def expect(self, copy: Copy, seconds: float) -> Coming:
        """A load or wake of `copy` begins now."""
        loop = self._cluster.loop

        def progress(stage: str, share: float) -> None:
            loop.call_soon_threadsafe(self._progressed, copy.id, stage, share)

        self._coming[copy.id] = Coming(self._cluster.now_s(), seconds, progress)
        return self._coming[copy.id]

    def over(self, copy: Copy) -> None:
        """It is here, or has failed."""
        self._coming.pop(copy.id, None)

    def cancel(self, copy: Copy) -> None:
        """Tell its manager to give up."""
        if coming := self._coming.get(copy.id):
            coming.cancel()

    def of(self, copy_id: str) -> Coming | None:
        """What is known of one instance's load or wake."""
        return self._coming.get(copy_id)

    def left_s(self, model: str) -> float | None:
        """Seconds until an instance is expected to be ready; None if nobody can tell."""
        cluster, now_s = self._cluster, self._cluster.now_s()
        copies = cluster.state.instances_of(model)
        if here := [c.left_s(now_s) for copy in copies if (c := self._coming.get(copy.id))]:
            return min(here)
        some = tuple(cluster.state.gpus)[: cluster.state.models[model].gpus]
        if len(some) < cluster.state.models[model].gpus:
            return None
        return cluster.failures.left_s(model) + cluster.state.costs.load_s(model, some)

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


def order(cluster: LiveCluster, copy: Copy, coming: Coming) -> Order:
    """What the manager is told to bring up."""
    served, model = cluster.roster.served[copy.model], cluster.state.models[copy.model]
    kv = copy.bytes_per_gpu - model.bytes_per_gpu(0)
    devices = tuple(cluster.devices[gpu] for gpu in copy.gpus)
    return Order(
        copy.id,
        copy.model,
        served.path,
        devices,
        copy.bytes_per_gpu,
        cluster.memory.total_bytes(devices[0]),
        kv if kv > 0 else None,
        served.settings,
        served.can_sleep,
        cluster.deadlines.load_s,
        coming.cancelled,
        uuids=cluster.memory.uuids(devices),
    )
