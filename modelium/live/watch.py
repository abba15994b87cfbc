"""What is looked at again and again: engines, GPUs, the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from modelium.core import Fault, Phase
from modelium.managers.identity import runs
from modelium.state import Copy

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

FLUSH_EVERY_S = 0.25
GPUS_EVERY_S = 1.0
FILES_EVERY_S = 5.0
ALIVE_EVERY_S = 0.5
AGAIN_S = 1.0
"""After an error, before the next look."""


async def always(
    cluster: LiveCluster, name: str, look: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Look until told to stop: an error is told of, and then it goes on."""
    while True:
        try:
            return await look()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            cluster.tell_news("watch-fault", watch=name, why=why)
            await asyncio.sleep(AGAIN_S)


async def engines(cluster: LiveCluster) -> None:
    """Find engines whose process has gone, at once; probe the others now and then."""
    probed_s: dict[str, float] = {}
    while True:
        await asyncio.sleep(ALIVE_EVERY_S)
        for copy_id, engine in list(cluster.engines.items()):
            copy = cluster.state.copy(copy_id)
            if copy.phase not in (Phase.READY, Phase.ASLEEP):
                continue
            if engine.process is not None and not runs(engine.process):
                cluster.kill(copy, "its process has ended")
                cluster.tell(Fault(copy.id, "its process has ended"))
            elif cluster.now_s() >= probed_s.get(copy_id, 0.0) + _pause_s(cluster, copy):
                probed_s[copy_id] = cluster.now_s()
                cluster.spawn(cluster.probe(copy))
        probed_s = {name: at for name, at in probed_s.items() if name in cluster.engines}


def _pause_s(cluster: LiveCluster, copy: Copy) -> float:
    """Stalled engines are looked at more closely."""
    moved = [s.moved_s for s in cluster.reception.seats if s.copy is copy]
    stalled = moved and cluster.now_s() - max(moved) > cluster.deadlines.stall_s
    return ALIVE_EVERY_S if stalled else cluster.deadlines.probe_every_s


async def gpus(cluster: LiveCluster) -> None:
    """Read the GPUs and the RAM: what is held, what is lost and what is back."""
    while True:
        await cluster.memory.look()
        cluster.memory.charge_others()
        cluster.host.look()
        for name, device in cluster.devices.items():
            reading = cluster.memory.readings.get(device)
            lost, working = (reading.lost if reading else ""), name in cluster.state.gpus
            if lost and working:
                lose(cluster, name, lost)
            elif reading and not lost and not working:
                cluster.memory.regain(name, reading)
                cluster.tell(Fault(name, "back"))
        cluster.tell_news("gpus")
        await asyncio.sleep(GPUS_EVERY_S)


def lose(cluster: LiveCluster, gpu: str, why: str) -> None:
    """A GPU is lost, with all that is on it."""
    cluster.state.lose(gpu)
    for copy in list(cluster.state.instances_on(gpu)):
        cluster.kill(cluster.state.copy(copy.id), f"{gpu} was lost: {why}")
    cluster.tell(Fault(gpu, f"lost: {why}"))


async def files(cluster: LiveCluster) -> None:
    """Notice models whose files change in place."""
    while True:
        await asyncio.sleep(FILES_EVERY_S)
        await cluster.files.look()


async def journal(cluster: LiveCluster) -> None:
    """Write finished requests in bundles; say so when the disk refuses them."""
    well = True
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        written = await cluster.call(cluster.journal.write_requests)
        if written is not well:
            well = written
            why = "requests are written again" if well else "requests cannot be written"
            cluster.tell_news("journal", well=well, why=why)
