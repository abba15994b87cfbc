"""GPU memory as it is, not as it was planned: what the driver says decides.

Learns what copies take and what they keep asleep, sees that memory comes back when they go, and
counts what other people's processes hold against what Modelium may use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.core import Phase
from modelium.live.engines import gpu_processes
from modelium.live.engines.gpus import Inventory, Reading
from modelium.live.records.journal import JournalError
from modelium.managers.engine import Engine
from modelium.units import MIB, format_bytes

if TYPE_CHECKING:
    from modelium.live.context import LiveContext

LOOK_EVERY_S = 0.2
SETTLED_S = 1.0
"""What a sleeping engine still holds when nothing came back for this long, it keeps."""
SLACK_BYTES = 256 * MIB
"""What a driver may keep or round: contexts of other processes come and go by less."""


class GpuMemory:
    """The cluster's eyes on the memory of its GPUs."""

    def __init__(
        self, cluster: LiveContext, inventory: Inventory, correct: Callable[[str], None]
    ) -> None:
        """`correct` takes up what was learnt of a model."""
        self._cluster, self._correct = cluster, correct
        self.inventory = inventory
        self.readings: dict[int, Reading] = {}
        """The last look, by device."""
        self.whole_bytes = {name: gpu.memory_bytes for name, gpu in cluster.state.all_gpus.items()}
        """What each GPU offers when nobody else uses it."""
        self._guessed: set[str] = set()
        """GPUs that nobody could read yet: their kind and size are guesses."""
        self._own_pids = not inventory.pretend and gpu_processes.has_own_pids()
        """Process numbers here may be others than the driver's."""
        self._before: dict[str, dict[int, set[int]]] = {}
        """By copy that comes up: the processes that nobody knew on its GPUs before, by device."""
        self._told = False

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

    async def begins(self, copy: Copy) -> None:
        """An engine is about to be started: what appears on its GPUs from now on may be its own."""
        if self._own_pids:
            readings, engines = await self.look(), self._cluster.engines.values()
            there = self._cluster.state.instances
            self._before = {name: old for name, old in self._before.items() if name in there}
            self._before[copy.id] = {
                device: set(gpu_processes.strangers(readings[device], engines))
                for device in (self._cluster.devices[gpu] for gpu in copy.gpus)
                if device in readings
            }

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
                if device in readings
                and (held := gpu_processes.held(readings[device], engine)) > SLACK_BYTES
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
        self._correct(copy.model)

    async def held(self, engine: Engine) -> int:
        """The most that an engine holds of one of its GPUs; 0 where the driver does not tell."""
        await self.look()
        return self.seen(engine)

    def seen(self, engine: Engine) -> int:
        """The same, by the last look."""
        readings = self.readings
        return max(
            (gpu_processes.held(readings[d], engine) for d in engine.devices if d in readings),
            default=0,
        )

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
            cluster.lifecycle.ledger.resize(gpu, whole)
        cluster.state.regain(gpu)

    def charge_others(self) -> None:
        """What others hold is not ours: GPUs are as large as what is left of them."""
        cluster, grown = self._cluster, False
        engines = cluster.engines.values()
        for name, device in cluster.devices.items():
            reading = self.readings.get(device)
            if reading is None or reading.lost or self._comes_up_on(name):
                continue
            booked = [
                (cluster.engines[copy.id], copy.bytes_per_gpu)
                for copy in cluster.state.instances_on(name)
                if copy.id in cluster.engines
            ]
            foreign = gpu_processes.foreign_bytes(reading, engines, booked, own_pids=self._own_pids)
            left = max(0, min(self.whole_bytes[name], reading.total_bytes - foreign))
            before = cluster.state.all_gpus[name].memory_bytes
            if abs(left - before) > SLACK_BYTES:
                grown = grown or left > before
                cluster.state.resize(name, left)
                cluster.lifecycle.ledger.resize(name, left)
                cluster.tell_news("memory", gpu=name, why=f"{format_bytes(foreign)} held by others")
        if grown:
            cluster.reconsider()

    def _comes_up_on(self, gpu: str) -> bool:
        """An engine is known by its processes only when it is up: until then it looks foreign."""
        return any(c.phase is Phase.LOADING for c in self._cluster.state.instances_on(gpu))

    async def _learn(self, copy: Copy, engine: Engine) -> None:
        seen = await self.held(engine)
        if not seen and self._own_pids:
            seen = self._recognise(copy, engine)
        # Only one that is awake, still, holds what a copy takes.
        if seen and copy.phase is Phase.READY:
            gpu = self._cluster.state.all_gpus[copy.gpus[0]]
            usual = seen - copy.extra_bytes  # with a KV pool as large as its model's own
            self._cluster.learnt.needs_bytes(copy.model, gpu.kind, usual)
            self._correct(copy.model)

    def _recognise(self, copy: Copy, engine: Engine) -> int:
        """Find an engine's processes by what appeared with it; what they hold, or 0, said once."""
        cluster, before = self._cluster, self._before.pop(copy.id, {})
        size, engines = copy.bytes_per_gpu, cluster.engines.values()
        if copy.id in cluster.engines and (
            pids := gpu_processes.newcomers(before, self.readings, engines, size)
        ):
            assert isinstance(engine.extra, dict), "plain data"
            engine.extra[gpu_processes.PIDS] = pids
            with contextlib.suppress(JournalError):  # counted there; found again at the next load
                cluster.journal.running(engine, copy.sleep_level)
            return self.seen(engine)
        if not self._told:
            self._told = True
            cluster.tell_news("memory", instance=copy.id, why=gpu_processes.UNTOLD)
        return 0
