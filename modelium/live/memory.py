"""GPU memory as it is, not as it was planned: what the driver says decides.

Learns what copies take and what they keep asleep, sees that memory comes back when they go, and
counts what other people's processes hold against what Modelium may use.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelium.core import Phase
from modelium.live.inventory import Inventory, Reading
from modelium.managers.engine import Engine
from modelium.state import Copy
from modelium.units import MIB, format_bytes

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

LOOK_EVERY_S = 0.2
SETTLED_S = 1.0
"""What a sleeping engine still holds when nothing came back for this long, it keeps."""
SLACK_BYTES = 256 * MIB
"""What a driver may keep or round: contexts of other processes come and go by less."""


class Memory:
    """The cluster's eyes on the memory of its GPUs."""

    def __init__(self, cluster: LiveCluster, inventory: Inventory) -> None:
        self._cluster = cluster
        self.inventory = inventory
        self.readings: dict[int, Reading] = {}
        """The last look, by device."""
        self.whole_bytes = {name: gpu.memory_bytes for name, gpu in cluster.state.all_gpus.items()}
        """What each GPU offers when nobody else uses it."""
        self._guessed: set[str] = set()
        """GPUs that nobody could read yet: their kind and size are guesses."""

    def total_bytes(self, device: int) -> int:
        """What a GPU has in all, as last seen; 0 before the first look."""
        reading = self.readings.get(device)
        return reading.total_bytes if reading else 0

    def uuids(self, devices: Sequence[int]) -> tuple[str, ...]:
        """The driver's own names of some GPUs; none for pretended ones."""
        if self.inventory.pretend:
            return ()
        return tuple(self.readings[device].uuid for device in devices)

    async def look(self) -> dict[int, Reading]:
        """Read all GPUs now."""
        self.readings = await self._cluster.call(self.inventory.read)
        return self.readings

    def took(self, copy: Copy, engine: Engine) -> None:
        """An engine has come up: learn what it really took; pretend GPUs believe the books."""
        if engine.process is not None:
            for device in engine.devices:
                self.inventory.hold(engine.process, device, copy.bytes_per_gpu)
        if not self.inventory.pretend:
            self._cluster.spawn(self._learn(copy, engine))

    async def back(self, copy: Copy, engine: Engine) -> None:
        """Wait until a copy that left has given its memory back; tell of what does not come."""
        if engine.process is not None:
            for device in engine.devices:
                self.inventory.hold(engine.process, device, 0)
        until_s = self._cluster.state.now_s + self._cluster.deadlines.memory_back_s
        while True:
            readings = await self.look()
            missing = [
                (device, held)
                for device in engine.devices
                if device in readings and (held := _held(readings[device], engine)) > SLACK_BYTES
            ]
            if not missing:
                return
            if self._cluster.state.now_s > until_s:
                break
            await asyncio.sleep(LOOK_EVERY_S)
        device, size = missing[0]
        why = f"{format_bytes(size)} on GPU {device} did not come back"
        self._cluster.tell_news("memory", instance=copy.id, why=why)

    async def kept_asleep(self, copy: Copy, engine: Engine, expected: int) -> int:
        """Wait until a copy that fell asleep gives nothing more back; bytes that it keeps per GPU.

        Where the driver does not tell, it is what was expected. What was seen is remembered.
        """
        if engine.process is not None:
            pretended = int(engine.extra.get("asleep_bytes", expected))
            for device in engine.devices:
                self.inventory.hold(engine.process, device, pretended)
        now_s = self._cluster.now_s
        until_s = now_s() + self._cluster.deadlines.memory_back_s
        least, since_s = None, now_s()
        while True:
            seen = await self.held(engine)
            if least is None or seen < least - SLACK_BYTES:
                least, since_s = seen, now_s()
            if seen <= expected + SLACK_BYTES or now_s() > min(until_s, since_s + SETTLED_S):
                break
            await asyncio.sleep(LOOK_EVERY_S)
        kept = min(seen or expected, copy.bytes_per_gpu)
        if kept != expected:
            self.learn_asleep(copy, kept)
        if kept > expected + SLACK_BYTES:
            more = format_bytes(kept - expected)
            why = f"it keeps {format_bytes(kept)} of each GPU asleep, {more} more than predicted"
            self._cluster.tell_news("memory", instance=copy.id, why=why)
        return kept

    def learn_asleep(self, copy: Copy, kept: int) -> None:
        """A sleeping copy was seen to keep this much of each GPU: that is predicted from now on."""
        gpu = self._cluster.state.all_gpus[copy.gpus[0]]
        self._cluster.learnt.asleep_bytes(copy.model, gpu.kind, kept)
        self._cluster.roster.correct(copy.model)

    async def held(self, engine: Engine) -> int:
        """The most that an engine holds of one of its GPUs; 0 where the driver does not tell."""
        await self.look()
        return self.seen(engine)

    def seen(self, engine: Engine) -> int:
        """The same, by the last look."""
        readings = self.readings
        return max((_held(readings[d], engine) for d in engine.devices if d in readings), default=0)

    def leave_out_lost(self) -> None:
        """GPUs that are lost before anything runs are listed, but nothing is put on them."""
        for name, device in self._cluster.devices.items():
            reading = self.readings.get(device)
            if reading is not None and reading.lost:
                self._cluster.state.lose(name)
                if not reading.uuid:
                    self._guessed.add(name)

    def regain(self, gpu: str, reading: Reading) -> None:
        """A GPU works again, perhaps for the first time: then it is what the driver says."""
        cluster = self._cluster
        if gpu in self._guessed:
            self._guessed.discard(gpu)
            whole = int(reading.total_bytes * cluster.share)
            self.whole_bytes[gpu] = whole
            cluster.state.resize(gpu, whole, reading.kind)
            cluster.room.resize(gpu, whole)
        cluster.state.regain(gpu)

    def charge_others(self) -> None:
        """What others hold is not ours: GPUs are as large as what is left of them."""
        cluster = self._cluster
        ours = {group(engine) for engine in cluster.engines.values()}
        for name, device in cluster.devices.items():
            reading = self.readings.get(device)
            if reading is None or reading.lost or self._comes_up_on(name):
                continue
            foreign = sum(n for pid, n in reading.processes.items() if _group_of(pid) not in ours)
            left = max(0, min(self.whole_bytes[name], reading.total_bytes - foreign))
            if abs(left - cluster.state.all_gpus[name].memory_bytes) > SLACK_BYTES:
                cluster.state.resize(name, left)
                cluster.room.resize(name, left)
                cluster.tell_news("memory", gpu=name, why=f"{format_bytes(foreign)} held by others")

    def _comes_up_on(self, gpu: str) -> bool:
        """An engine is known by its processes only when it is up: until then it looks foreign."""
        return any(c.phase is Phase.LOADING for c in self._cluster.state.instances_on(gpu))

    async def _learn(self, copy: Copy, engine: Engine) -> None:
        seen = await self.held(engine)
        # Only one that is awake, still, holds what a copy takes.
        if seen and copy.phase is Phase.READY:
            gpu = self._cluster.state.all_gpus[copy.gpus[0]]
            usual = seen - copy.extra_bytes  # with a KV pool as large as its model's own
            self._cluster.learnt.needs_bytes(copy.model, gpu.kind, usual)
            self._cluster.roster.correct(copy.model)


def group(engine: Engine) -> int:
    """The process group whose memory is the engine's; 0 if it is not known."""
    return engine.process.pid if engine.process else int(engine.extra.get("server_pid", 0))


def _held(reading: Reading, engine: Engine) -> int:
    """What an engine holds of a GPU: its workers hold it, not the leader of its group.

    Where one server holds several engines, each names its own workers.
    """
    if (workers := engine.extra.get("pids")) is not None:
        return sum(size for pid, size in reading.processes.items() if pid in workers)
    mine = group(engine)
    return sum(size for pid, size in reading.processes.items() if _group_of(pid) == mine)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1
