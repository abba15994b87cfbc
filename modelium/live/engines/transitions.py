"""What an instance goes through: load, unload, sleep, wake, move, as tasks of the event loop.

The same steps as in simulation (`modelium.sim.transitions`), done by managers in threads. Memory is
taken from the ledger before the first step and given back when it was seen free after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from modelium.control.rules import refusal
from modelium.control.state import Copy
from modelium.core import Decision, Phase, Unload
from modelium.live.engines.launch import launched_with
from modelium.live.records.journal import JournalError, Record
from modelium.managers.engine import EngineError, Order, StartError
from modelium.units import format_bytes

if TYPE_CHECKING:
    from modelium.live.context import LiveContext
    from modelium.live.engines.gpu_memory import GpuMemory
    from modelium.live.engines.model_files import WatchedFiles
    from modelium.live.engines.progress import PendingLoad, PendingLoads

STOP_TRIES = 5
"""How often an engine that survives SIGKILL is told again to go."""
STOP_AGAIN_S = 5.0
SURVIVOR_AGAIN_S = 30.0
"""After that its memory is nobody's, and it is told again this often."""


@dataclass(frozen=True)
class Transitions:
    """The steps of each transition, as coroutines."""

    cluster: LiveContext
    memory: GpuMemory
    pending_loads: PendingLoads
    files: WatchedFiles

    async def load(self, copy: Copy, line: Decision) -> None:
        """Bring up a new copy: wait for room, start its engine, see it answer."""
        cluster = self.cluster
        await self._take(copy, copy.bytes_per_gpu, line)
        await self.files.read(copy)
        served = cluster.served[copy.model]
        line.tier = cluster.state.source_tier(copy.model, copy.node).value
        cluster.lifecycle.timeline.mark(copy, "loading")
        gpus, size = copy.gpus, copy.bytes_per_gpu
        launch = launched_with(served, self.files.loaded(copy))
        cluster.journal.starting(
            Record(
                copy.id, copy.model, served.runtime, gpus, size, "starting", 0, None, None, launch
            )
        )
        coming = self.pending_loads.expect(copy, cluster.state.costs.load_s(copy.model, gpus))
        await self.memory.begins(copy)
        manager = cluster.managers[served.runtime]
        engine = await cluster.call(manager.start, self._order(copy, coming), coming.progress)
        cluster.engines[copy.id] = engine
        cluster.check(copy)
        await self.files.confirm(copy)
        cluster.journal.running(engine)
        line.stages.update(engine.stages)
        cluster.learnt.took(copy.model, line.tier, cluster.state.now_s - coming.begun_s)
        self.memory.took(copy, engine)
        cluster.state.ram[copy.node].cache(
            copy.model, cluster.state.models[copy.model].weights_bytes
        )
        cluster.lifecycle.make_ready(copy, line.tier)

    async def wake(self, copy: Copy, line: Decision) -> None:
        """Bring back a sleeping copy."""
        cluster = self.cluster
        await self._take(copy, copy.bytes_per_gpu - cluster.lifecycle.held[copy.id], line)
        await self.files.compare(copy)
        line.tier = f"sleep-{copy.sleep_level}"
        cluster.lifecycle.timeline.mark(copy, "loading")
        engine = cluster.engines[copy.id]
        coming = self.pending_loads.expect(copy, cluster.state.costs.wake_s(copy.id))
        coming.progress("wake", 0.0)
        wake_s = cluster.deadlines.wake_s
        waking = cluster.spawn(cluster.call(cluster.managers[engine.runtime].wake, engine, wake_s))
        await coming.unless_cancelled(waking)
        cluster.check(copy)
        await waking
        line.stages["wake"] = took_s = cluster.state.now_s - coming.begun_s
        cluster.journal.running(engine)
        cluster.learnt.took(copy.model, line.tier, took_s)
        self.memory.took(copy, engine)
        cluster.state.change(copy, Phase.WAKING, host_bytes=0, sleep_level=0)
        cluster.lifecycle.make_ready(copy, line.tier)

    async def sleep(self, copy: Copy, line: Decision, level: int) -> None:
        """Free a copy's GPU memory, keep its process; level 1 keeps the weights in RAM."""
        cluster = self.cluster
        await self._drain(copy, line)
        cluster.check(copy)
        cluster.lifecycle.timeline.mark(copy, "leaving")
        engine, begun_s = cluster.engines[copy.id], cluster.state.now_s
        sleep_s = cluster.deadlines.sleep_s
        await cluster.call(cluster.managers[engine.runtime].sleep, engine, level, sleep_s)
        line.stages["sleep"] = cluster.state.now_s - begun_s
        expected = min(cluster.state.models[copy.model].asleep_bytes, copy.bytes_per_gpu)
        kept = await self.memory.kept_asleep(copy, engine, expected)
        cluster.check(copy)
        cluster.journal.running(engine, level, kept)
        cluster.state.change(copy, Phase.ASLEEP, bytes_per_gpu=kept)
        cluster.lifecycle.timeline.mark(copy, "asleep")
        cluster.lifecycle.hold(copy, kept)
        if kept > expected:  # once this sleep is over
            cluster.loop.call_soon(self._keep_promises, copy, kept - expected)

    def _keep_promises(self, copy: Copy, more_bytes: int) -> None:
        """Unload a sleeper that kept memory which was promised to a load or wake that waits for it.

        It stays where what leaves gives enough.
        """
        cluster = self.cluster
        state = cluster.state
        short = [
            gpu
            for gpu in copy.gpus
            if gpu in state.gpus and state.free_bytes(gpu) + state.freeing_bytes(gpu) < 0
        ]
        waiting = [name for name in cluster.waits_for_room if _on_one_of(state.copy(name), short)]
        if copy.phase is not Phase.ASLEEP or not waiting:
            return
        keeps = f"it keeps {format_bytes(more_bytes)} more asleep than predicted"
        action = Unload(copy.id, f"{keeps}, and {', '.join(waiting)} waits for it")
        if why := refusal(state, action, state.limits):
            for name in waiting:
                lacks = f"{copy.id} keeps {format_bytes(more_bytes)} more asleep than predicted"
                cluster.kill(state.copy(name), f"no room: {lacks}, and {why}")
            return
        cluster.start(action)

    async def unload(self, copy: Copy, line: Decision) -> None:
        """Drop a copy once it is idle; its memory is free when it was seen free."""
        await self._drain(copy, line)
        begun_s = self.cluster.state.now_s
        await self.bury(copy, line.reason)
        line.stages["exit"] = self.cluster.state.now_s - begun_s

    async def move(self, old: Copy, new: Copy, line: Decision) -> None:
        """Load `new`; `old` serves until then, drains and goes."""
        await self.load(new, line)
        if old.id in self.cluster.state.instances and old.phase is Phase.READY:
            where = ", ".join(new.gpus)
            moved = f"moved to {where}" if new.gpus != old.gpus else f"{new.id} takes its place"
            self.cluster.dismiss(old, moved)

    async def bury(self, copy: Copy, why: str) -> None:
        """End a copy's engine, if it has one, and strike the copy out when its memory is back.

        Raises EngineError if it cannot be ended: then it stays in the books, with what it holds.
        """
        cluster = self.cluster
        cluster.lifecycle.timeline.mark(copy, "leaving")
        engine = cluster.engines.get(copy.id)
        if engine is not None:
            manager, grace_s = (
                cluster.managers[engine.runtime],
                cluster.deadlines.stop_grace_s,
            )
            for left in reversed(range(STOP_TRIES)):
                try:
                    await cluster.call(manager.stop, engine, grace_s)
                    break
                except EngineError:
                    if not left:
                        raise
                    await asyncio.sleep(STOP_AGAIN_S)
            cluster.dispatcher.cut(copy, why)
            await self.memory.back(copy, engine)
        with contextlib.suppress(JournalError):  # it is gone all the same; a restart finds it gone
            cluster.journal.ended(copy.id, why)
        cluster.lifecycle.forget(copy)

    async def see_off(self, copy: Copy, why: str) -> None:
        """Bury a copy. While it does not end, nobody counts on its memory; it is tried again."""
        cluster = self.cluster
        try:
            await self.bury(copy, why)
        except Exception as error:  # also a manager's own mistakes
            cluster.tell_news("survivor", instance=copy.id, why=str(error))
            if not copy.stuck:
                cluster.state.stick(copy)
                self._send_elsewhere(copy)
            if not cluster.dispatcher.closed:
                again = partial(self.see_off, copy, why)
                cluster.loop.call_later(SURVIVOR_AGAIN_S, lambda: cluster.spawn(again()))
        cluster.pulse()
        if copy.stuck and copy.id not in cluster.state.instances:
            cluster.reconsider()  # its memory was promised to nobody, and no event tells of it

    def _send_elsewhere(self, copy: Copy) -> None:
        """What waits for the room of a copy that does not go would wait for ever."""
        cluster = self.cluster
        for name in list(cluster.waits_for_room):
            gpus = [gpu for gpu in cluster.state.copy(name).gpus if gpu in copy.gpus]
            if gpus:
                cluster.kill(cluster.state.copy(name), f"{copy.id} does not leave {gpus[0]}")

    async def _take(self, copy: Copy, more_bytes: int, line: Decision) -> None:
        """Wait until this much is free on each of the copy's GPUs, and take it."""
        cluster = self.cluster
        cluster.check(copy)
        begun_s = cluster.state.now_s
        granted = asyncio.get_running_loop().create_future()
        wanted = cluster.lifecycle.ledger.take(copy.gpus, more_bytes, partial(_grant, granted))
        cluster.waits_for_room[copy.id] = granted
        try:
            await granted
        except asyncio.CancelledError:
            if not cluster.lifecycle.ledger.withdraw(wanted):
                cluster.lifecycle.ledger.give(copy.gpus, more_bytes)
            raise StartError(cluster.lost.get(copy.id, "given up")) from None
        finally:
            del cluster.waits_for_room[copy.id]
        cluster.lifecycle.took(copy, more_bytes)
        cluster.check(copy)
        if (waited_s := cluster.state.now_s - begun_s) > 1e-3:
            line.stages["room"] = waited_s

    async def _drain(self, copy: Copy, line: Decision) -> None:
        cluster = self.cluster
        if copy.busy and copy.id not in cluster.lost:
            begun_s = cluster.state.now_s
            await cluster.idle_event(copy).wait()
            line.stages["drain"] = cluster.state.now_s - begun_s

    def _order(self, copy: Copy, coming: PendingLoad) -> Order:
        """What the manager is told to bring up."""
        cluster = self.cluster
        served, model = cluster.served[copy.model], cluster.state.models[copy.model]
        kv = copy.bytes_per_gpu - model.bytes_per_gpu(0)
        devices = tuple(cluster.devices[gpu] for gpu in copy.gpus)
        return Order(
            copy.id,
            copy.model,
            served.path,
            devices,
            copy.bytes_per_gpu,
            self.memory.total_bytes(devices[0]),
            kv if kv > 0 else None,
            served.settings,
            served.model.can_sleep,
            cluster.deadlines.load_s,
            coming.cancelled,
            uuids=self.memory.uuids(devices),
        )


def _grant(granted: asyncio.Future[None]) -> None:
    if not granted.done():  # given up at this very moment: then it gives the room back
        granted.set_result(None)


def _on_one_of(copy: Copy, gpus: list[str]) -> bool:
    return not set(gpus).isdisjoint(copy.gpus)
