"""Which GPUs there are: real ones, or those that the configuration pretends."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from modelium.config import Config, Plan, make_plan
from modelium.config.schema import GpuGroup, NodeEntry
from modelium.errors import ConfigError
from modelium.live.inventory import Inventory, NvmlInventory, PretendInventory
from modelium.serving.order import Order
from modelium.units import counted


def hardware(order: Order) -> tuple[Inventory, Order, Plan, tuple[str, ...]]:
    """Real GPUs where there are some, else those of the configuration, which is said aloud.

    The order comes back with the GPUs that are used. Raises ConfigError if there are none.
    """
    config = order.config
    if not order.emulate and not config.emulated.enabled:
        with contextlib.suppress(ConfigError):
            inventory = NvmlInventory()
            order = replace(order, config=_on(config, inventory))
            plan = make_plan(order.config)
            found = f"{counted(len(plan.hardware.gpus), 'GPU')} found by NVML"
            return inventory, order, plan, (found,)
    if not (config.cluster.gpus or config.cluster.nodes):
        raise ConfigError(
            "no NVIDIA GPU was found; name GPUs to pretend in the configuration, such as"
            " cluster: {gpus: 4xh100-80g}, or give --gpus"
        )
    plan = make_plan(config)
    gpus = plan.hardware.gpus
    kinds = ", ".join(f"{sum(g.kind == k for g in gpus)} x {k}" for k in plan.hardware.kinds())
    return PretendInventory(gpus), order, plan, (f"no real GPUs are used: {kinds} are pretended",)


def _on(config: Config, inventory: NvmlInventory) -> Config:
    """The configuration with the GPUs that are there, all on one node."""
    readings = [reading for reading in inventory.read().values() if not reading.lost]
    groups = [GpuGroup(kind=reading.kind, memory=reading.total_bytes) for reading in readings]
    node = NodeEntry(name="node0", gpus=groups)
    cluster = replace(config.cluster, gpus=[], nodes=[node])
    return replace(config, cluster=cluster)
