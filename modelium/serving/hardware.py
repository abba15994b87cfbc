"""Which GPUs there are: real ones, or those that the configuration simulates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from modelium import catalog
from modelium.catalog import GpuSpec
from modelium.config import Config, Plan, make_plan
from modelium.config.planning.devices import GpuName
from modelium.config.planning.hardware import figures, with_listed
from modelium.config.schema import FoundGpu, NodeEntry
from modelium.errors import ConfigError
from modelium.live.engines import host_memory
from modelium.live.engines.gpus import Inventory, NvmlInventory, PretendInventory, Reading
from modelium.serving.launch_spec import LaunchSpec
from modelium.serving.visible_devices import visible
from modelium.units import counted

NO_INSTANCES = (
    "is in MIG mode and has no instances: make some (nvidia-smi mig -cgi ... -C) or leave MIG mode"
    " (nvidia-smi -mig 0)"
)


def hardware(order: LaunchSpec) -> tuple[Inventory, LaunchSpec, Plan, tuple[str, ...]]:
    """Real GPUs where there are some, else those of the configuration, which is said aloud.

    The order comes back with the GPUs that are used. Raises ConfigError if there are none.
    """
    config, why = order.config, "no NVIDIA GPU was found"
    notes: tuple[str, ...] = ()
    if not order.emulate and not config.emulated.enabled:
        inventory = _driver()
        if inventory is not None:
            readings, notes = seen(inventory)
            if readings:
                order = replace(order, config=on_listed(config, readings))
                plan = make_plan(order.config)
                notes = (_ram(plan, order.config), *notes)
                return (
                    inventory,
                    order,
                    plan,
                    (*_found(plan, inventory, readings), *notes, *assumed(config, readings)),
                )
            why = "; ".join(notes) or why
    if not (config.cluster.gpus or config.cluster.nodes):
        raise ConfigError(
            f"{why}; name simulated GPUs in the configuration, such as"
            " cluster: {gpus: 4xh100-80g}, or give --gpus"
        )
    plan = make_plan(config)
    gpus = plan.hardware.gpus
    kinds = ", ".join(f"{sum(g.kind == k for g in gpus)} x {k}" for k in plan.hardware.kinds())
    simulated = f"no real GPUs are used: {kinds} are simulated"
    return (
        PretendInventory(gpus),
        order,
        plan,
        (simulated, *_left_out(plan), *notes, *plan.hardware.notes()),
    )


def seen(inventory: NvmlInventory) -> tuple[list[Reading], tuple[str, ...]]:
    """The GPUs that the environment lets us use, lost ones too, and what it leaves out."""
    readings = inventory.read().values()
    names = {_name(reading): reading for reading in readings}
    kept, notes = visible(list(names), os.environ)
    empty = [f"GPU {n} {NO_INSTANCES}" for n in inventory.without_instances]
    return [names[name] for name in kept], (*notes, *empty)


def _for_weights(config: Config) -> int:
    """RAM for weights that sleep or are cached: the machine's, or less where that is said."""
    cluster, total = config.cluster, host_memory.read().total_bytes
    there = host_memory.for_weights(
        total, host_memory.reserve_bytes(total, config.live.host_reserve)
    )
    said = [cluster.host_memory, *(node.host_memory for node in cluster.nodes)]
    return min([there, *(size for size in said if size is not None)])


def _ram(plan: Plan, config: Config) -> str:
    memory = host_memory.read()
    reserve = host_memory.reserve_bytes(memory.total_bytes, config.live.host_reserve)
    return host_memory.in_words(memory, reserve, plan.hardware.nodes[0].host_bytes)


def _driver() -> NvmlInventory | None:
    try:
        return NvmlInventory()
    except ConfigError:
        return None


def _name(reading: Reading) -> GpuName:
    number = reading.number
    return GpuName(f"gpu{number}", number, reading.kind, reading.uuid, reading.parent)


def on_listed(config: Config, readings: Sequence[Reading]) -> Config:
    """The configuration with the GPUs that are there, all on one node.

    One that is lost and was never seen is taken for one of the others' kind until it is back.
    """
    working = [reading for reading in readings if not reading.lost]
    if not working:
        told = ", ".join(f"GPU {reading.number}: {reading.lost}" for reading in readings)
        raise ConfigError(f"no GPU works ({told})")
    [(usual, _)] = Counter(reading.kind for reading in working).most_common(1)
    example = next(reading for reading in working if reading.kind == usual)
    gpus: list[FoundGpu] = []
    for reading in readings:
        facts = example if reading.lost else reading
        gpus.append(
            FoundGpu(
                kind=facts.kind,
                memory=facts.total_bytes,
                uuid=reading.uuid or None,
                device=reading.device,
                number=reading.number,
                parent=reading.parent,
            )
        )
    node = NodeEntry(name="node0", gpus=[*gpus], host_memory=_for_weights(config))
    cluster = with_listed(config.cluster, [_spec(reading) for reading in working])
    return replace(config, cluster=replace(cluster, gpus=[], nodes=[node]))


def assumed(config: Config, readings: Sequence[Reading]) -> tuple[str, ...]:
    """What had to be assumed of GPUs that the driver lists, one line for each kind."""
    specs = {reading.kind: _spec(reading) for reading in readings if not reading.lost}
    kinds = config.cluster.kinds
    told = (catalog.corrected(spec, figures(kind, kinds)) for kind, spec in specs.items())
    return tuple(filter(None, map(catalog.note, told)))


def _spec(reading: Reading) -> GpuSpec:
    return catalog.device_spec(reading.name, reading.total_bytes, reading.facts)


def _found(plan: Plan, inventory: NvmlInventory, readings: Sequence[Reading]) -> tuple[str, ...]:
    used = {plan.hardware.devices[gpu.id] for gpu in plan.hardware.gpus}
    lost = tuple(
        f"GPU {reading.number} is lost ({reading.lost}): it is used once it is back"
        for reading in readings
        if reading.lost and reading.device in used
    )
    working = f"{counted(len(used) - len(lost), 'GPU')} found by NVML"
    return (working, *_left_out(plan), *lost)


def _left_out(plan: Plan) -> tuple[str, ...]:
    out = ", ".join(name.number for name in plan.hardware.left_out)
    return (f"cluster.use leaves out GPU {out}",) if out else ()
