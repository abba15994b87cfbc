"""After a restart: take over the engines that still run, end those that nobody can account for."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.core import Phase
from modelium.live.engines.launch import Difference, difference, files_of
from modelium.live.records.journal import Record
from modelium.managers.engine import Engine, EngineError

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster


async def adopt(cluster: LiveCluster) -> list[str]:
    """Adopt what the journal says is alive and is; end the rest. Returns the adopted instances.

    An engine that was still starting is ended: nobody waits for it any more, and its start may
    hang for the same reason as before. One that was started with something else than what is
    configured now is ended if it is of another model by now, or if its server has to be started
    anew; else it serves, and is `outdated` until another one takes its place. Engines of which an
    earlier version did not keep that are adopted as they are.
    """
    records = [_found_again(cluster, record) for record in cluster.journal.alive()]
    taken = await asyncio.gather(*(_adoptable(cluster, record) for record in records))
    adopted: list[str] = []
    for record, (ours, differs) in zip(records, taken, strict=True):
        if ours and _fits(cluster, record):
            _enter(cluster, record, differs)
            adopted.append(record.instance)
        else:
            if differs:
                cluster.notes.append(f"{record.instance} ran already and was ended: {differs}")
            await _end(cluster, record, differs or "left by an earlier run")
    known = list(cluster.engines.values())
    for manager in cluster.managers.values():
        for swept in await cluster.call(manager.sweep, known):
            cluster.tell_news("swept", why=swept)
    return adopted


def _found_again(cluster: LiveCluster, record: Record) -> Record:
    """The record with its GPUs as they are counted now: the driver may have lost or moved some.

    A GPU that is not there any more is named by its UUID, which fits nowhere.
    """
    engine = record.engine
    if engine is None or not engine.uuids:
        return record
    devices = {one.uuid: device for device, one in cluster.memory.readings.items() if one.uuid}
    names = {device: name for name, device in cluster.devices.items()}
    gpus = tuple(names.get(devices.get(uuid, -1), uuid) for uuid in engine.uuids)
    if not all(uuid in devices for uuid in engine.uuids):
        return replace(record, gpus=gpus)
    now = replace(engine, devices=tuple(devices[uuid] for uuid in engine.uuids))
    return replace(record, gpus=gpus, engine=now)


async def _adoptable(cluster: LiveCluster, record: Record) -> tuple[bool, str]:
    """Whether it is, and what differs from what is configured now."""
    manager = cluster.managers.get(record.runtime)
    served = cluster.served.get(record.model)
    if record.engine is None or manager is None or served is None:
        return False, ""
    if served.runtime != record.runtime:
        return False, f"runtime was {record.runtime}, is {served.runtime}"
    found = Difference()
    if record.launch is not None:
        found = difference(record.launch, served)
    if not found.may_serve:
        return False, found.words
    return await cluster.call(manager.adopt, record.engine), found.words


def _fits(cluster: LiveCluster, record: Record) -> bool:
    """The GPUs are there still, with enough memory that nobody else was promised.

    What its model may not use, since the configuration was changed, counts as gone.
    """
    state, model = cluster.state, cluster.state.models[record.model]
    return all(
        gpu in state.gpus
        and model.may_use(gpu)
        and state.free_bytes(gpu) >= _holds(cluster, record)
        for gpu in record.gpus
    )


def _holds(cluster: LiveCluster, record: Record) -> int:
    """Bytes on each GPU: a sleeper keeps a little, and what it left may be another's by now.

    What the driver sees of a sleeper goes before what was seen when it fell asleep, and that before
    what is predicted.
    """
    if not record.sleep_level:
        return record.bytes_per_gpu
    assert record.engine is not None, "only engines that ran are adopted"
    seen = cluster.memory.seen(record.engine) or record.asleep_bytes
    kept = seen or cluster.state.models[record.model].asleep_bytes
    return min(kept, record.bytes_per_gpu)


def _enter(cluster: LiveCluster, record: Record, differs: str) -> None:
    engine: Engine | None = record.engine
    assert engine is not None, "only engines that ran are adopted"
    state, asleep = cluster.state, record.sleep_level > 0
    node = state.gpus[record.gpus[0]].node
    meters = cluster.dispatcher.open_meters(record.instance, record.model)
    copy = Copy(record.instance, record.model, record.gpus, node, meters)
    model = state.models[record.model]
    copy.bytes_per_gpu = record.bytes_per_gpu
    copy.awake_bytes_per_gpu = record.bytes_per_gpu
    if asleep:
        copy.phase, copy.sleep_level = Phase.ASLEEP, record.sleep_level
        copy.bytes_per_gpu = _holds(cluster, record)
        copy.host_bytes = model.weights_bytes if record.sleep_level == 1 else 0
    state.add(copy)
    cluster.engines[copy.id] = engine
    cluster.files.adopted(copy, files_of(record.launch) if record.launch is not None else None)
    cluster.lifecycle.ledger.take(copy.gpus, copy.bytes_per_gpu, lambda: None)
    cluster.lifecycle.took(copy, copy.bytes_per_gpu)
    cluster.memory.took(copy, engine)
    if asleep:
        cluster.lifecycle.timeline.mark(copy, "asleep")
        if copy.bytes_per_gpu != model.asleep_bytes:
            cluster.memory.learn_asleep(copy, copy.bytes_per_gpu)
    else:
        cluster.lifecycle.make_ready(copy, "")
    if differs:
        cluster.settings_changed[copy.id] = differs
    if what := cluster.files.outdated(copy):
        cluster.notes.append(f"{copy.id} ran already and is replaced: {what}")
    elif record.launch is None:
        cluster.notes.append(
            f"{copy.id} ran already; an earlier version started it, which did not keep with what"
            f" settings. `modelium unload {copy.model}` has those of now used"
        )
    cluster.tell_news("adopted", instance=copy.id, model=copy.model, gpus=copy.gpus)


async def _end(cluster: LiveCluster, record: Record, why: str) -> None:
    if record.engine is not None and record.runtime in cluster.managers:
        manager, grace_s = cluster.managers[record.runtime], cluster.deadlines.stop_grace_s
        with contextlib.suppress(EngineError):  # the sweep tries once more
            await cluster.call(manager.stop, record.engine, grace_s)
    cluster.journal.ended(record.instance, why)
    cluster.tell_news("ended", instance=record.instance, model=record.model, why=why)
