"""What is looked at again and again: engines, GPUs, the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from modelium.core import Fault, Phase
from modelium.live.records.request_log import note_timeline
from modelium.managers.identity import runs

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

FLUSH_EVERY_S = 0.25
GPUS_EVERY_S = 1.0
FILES_EVERY_S = 5.0
TIMELINE_EVERY_S = 5.0
"""So much of it a server that is killed may lose."""
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
    """Find engines whose process has gone, at once; probe the others now and then.

    A probe may take minutes (Triton repairs its server first): no other one is begun meanwhile.
    """
    probed_s: dict[str, float] = {}
    probes: dict[str, asyncio.Task[None]] = {}
    while True:
        await asyncio.sleep(ALIVE_EVERY_S)
        stalled = _stalled(cluster)
        for copy_id, engine in list(cluster.engines.items()):
            copy = cluster.state.copy(copy_id)
            if copy.phase not in (Phase.READY, Phase.ASLEEP):
                continue
            if engine.process is not None and not runs(engine.process):
                cluster.kill(copy, "its process has ended")
                cluster.tell(Fault(copy.id, "its process has ended"))
                continue
            if (last := probes.get(copy_id)) is not None and not last.done():
                continue
            pause_s = ALIVE_EVERY_S if copy_id in stalled else cluster.deadlines.probe_every_s
            if cluster.now_s() >= probed_s.get(copy_id, 0.0) + pause_s:
                probed_s[copy_id] = cluster.now_s()
                probes[copy_id] = cluster.spawn(cluster.probe(copy))
        for gone in probed_s.keys() - cluster.engines.keys():
            del probed_s[gone], probes[gone]


def _stalled(cluster: LiveCluster) -> set[str]:
    """Instances with requests of which none has moved for long: they are probed more often."""
    moved_s: dict[str, float] = {}
    for seat in cluster.dispatcher.seats:
        moved_s[seat.copy.id] = max(seat.moved_s, moved_s.get(seat.copy.id, seat.moved_s))
    since_s = cluster.now_s() - cluster.deadlines.stall_s
    return {name for name, at_s in moved_s.items() if at_s < since_s}


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
    """Write requests and the timeline in bundles; say so when the disk refuses them."""
    well = True
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        written = await cluster.call(cluster.journal.write_rows)
        if written is not well:
            well = written
            why = "requests are written again" if well else "requests cannot be written"
            cluster.tell_news("journal", well=well, why=why)


async def timeline(cluster: LiveCluster) -> None:
    """Have the journal told who holds and uses which GPU."""
    while True:
        await asyncio.sleep(TIMELINE_EVERY_S)
        note_timeline(cluster)
