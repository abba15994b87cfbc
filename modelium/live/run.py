"""Beginning and end of a live cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from modelium.live.control_loop import ControlLoop
from modelium.live.engines import health
from modelium.live.engines.recovery import adopt
from modelium.live.records import retention
from modelium.live.records.journal import JournalError
from modelium.live.records.request_log import note_timeline
from modelium.managers.engine import EngineError

if TYPE_CHECKING:
    from modelium.core import Policy
    from modelium.live.cluster import LiveCluster

LOOK_S = 0.05


@asynccontextmanager
async def alive(
    cluster: LiveCluster, policy: Policy, *, keep_engines: bool = False
) -> AsyncIterator[ControlLoop]:
    """Adopt what runs, let `policy` run the cluster, and end it all in order.

    At the end requests in flight have `Deadlines.shutdown_s` to finish; engines are stopped, or
    with `keep_engines` left for the next start to adopt.
    """
    await cluster.memory.look()
    cluster.memory.leave_out_lost()
    await adopt(cluster)
    driver = ControlLoop(cluster, policy)
    looks = {
        "engines": lambda: health.engines(cluster),
        "gpus": lambda: health.gpus(cluster),
        "journal": lambda: health.journal(cluster),
        "timeline": lambda: health.timeline(cluster),
        "files": lambda: health.files(cluster),
        "policy": driver.tick,
        "retention": lambda: retention.tidy_regularly(cluster),
    }
    watching = [cluster.spawn(health.always(cluster, name, look)) for name, look in looks.items()]
    try:
        yield driver
    finally:
        await farewell(cluster)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await _end(cluster, keep_engines)


async def farewell(cluster: LiveCluster) -> None:
    """Admit nobody any more, and let who is served finish."""
    cluster.listen(lambda event: None)
    cluster.dispatcher.close("the server is stopping")
    begun_s = cluster.now_s()
    # Read anew each time: whoever is in a hurry shortens it.
    while cluster.dispatcher.seats and cluster.now_s() < begun_s + cluster.deadlines.shutdown_s:
        await asyncio.sleep(LOOK_S)


async def _end(cluster: LiveCluster, keep_engines: bool) -> None:
    for copy in list(cluster.state.instances.values()):
        kept = keep_engines and copy.id in cluster.engines and not cluster.drains(copy)
        if copy.id in cluster.state.instances and not kept:
            cluster.kill(cluster.state.copy(copy.id), "the server is stopping", "ended")
    await cluster.settle()
    if not keep_engines:
        left = [cluster.call(cluster.managers[e.runtime].stop, e) for e in cluster.engines.values()]
        for ended in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(ended, EngineError):
                cluster.tell_news("survivor", why=str(ended))
        for manager in cluster.managers.values():
            await cluster.call(manager.close)
    cluster.lifecycle.timeline.close()
    note_timeline(cluster)
    with contextlib.suppress(JournalError):  # the disk is full, and was said to be
        cluster.journal.close("engines kept" if keep_engines else "stopped")
    cluster.shut()
