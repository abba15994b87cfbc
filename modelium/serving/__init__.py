"""From a configuration to a running server: what `modelium run` does, for scripts as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.config import Config
from modelium.config.access import access_notes
from modelium.config.planning.live import sleep_clashes
from modelium.live.admin import AdminService
from modelium.live.cluster import LiveCluster
from modelium.live.engines import host_memory
from modelium.live.engines.health import always
from modelium.live.folder_lock import locked
from modelium.live.records.export import about
from modelium.live.records.journal import Journal
from modelium.live.records.request_log import RequestLog
from modelium.live.records.telemetry import Telemetry
from modelium.live.run import alive, farewell
from modelium.metrics import ModeliumMetrics
from modelium.serving.config_watch import watch_config
from modelium.serving.gateway_factory import GatewayFactory
from modelium.serving.hardware import hardware
from modelium.serving.incoming import incoming
from modelium.serving.launch_spec import LaunchSpec as LaunchSpec
from modelium.serving.launch_spec import order as order
from modelium.serving.managers import Managers
from modelium.serving.open_files import raise_open_files
from modelium.serving.prepare import prepare
from modelium.serving.reload import Reload
from modelium.serving.signals import Signals

if TYPE_CHECKING:
    from modelium.live.control_loop import ControlLoop
    from modelium.live.engines.gpus import Inventory
    from modelium.live.settings import LiveInput


@dataclass
class Server:
    """A running server."""

    cluster: LiveCluster
    driver: ControlLoop
    operations: AdminService
    metrics: ModeliumMetrics
    url: str
    notes: tuple[str, ...]
    """What had to be assumed."""
    stop: asyncio.Event
    reload: Reload
    ends: list[Callable[[], object]] = field(default_factory=list)

    def on_end(self, do: Callable[[], object]) -> None:
        """Have something done before the gateway closes."""
        self.ends.append(do)

    def hurry(self) -> None:
        """End at once: requests in flight and engines get no time."""
        hurried = replace(self.cluster.deadlines, shutdown_s=0.0, stop_grace_s=0.0)
        self.cluster.deadlines = hurried


@asynccontextmanager
async def serving(order: LaunchSpec) -> AsyncIterator[Server]:
    """Serve until the body ends; a signal sets `Server.stop`. Raises ModeliumError.

    What may fail comes first: the live folder's lock, then the addresses, then what is configured.
    Until all of it is there, nothing that an earlier run left is touched.
    """
    few = raise_open_files()
    asked = order
    inventory, order, plan, notes = hardware(order)
    config, folder = order.config, Path(order.config.live.folder)
    signals = Signals()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(locked(folder))
        metrics = ModeliumMetrics()
        if config.metrics.enabled:
            metrics.start_server(config.metrics.port, config.metrics.host)
            stack.callback(metrics.stop_server)
        front = await stack.enter_async_context(contextlib.AsyncExitStack())
        gateway = GatewayFactory(config)
        url = await front.enter_async_context(gateway.listening())
        managers = Managers(config, folder)
        made = prepare(order, plan, managers)
        stock, given = made.stock, _with_ram(made.given, config, inventory)
        slos = {one.model.name: one.model.slo for one in given.served}
        command = shlex.join(["modelium", *sys.argv[1:]])
        told = about(given.gpus, slos, made.policy_name, made.policy_parameters, command)
        cluster = LiveCluster(given, managers, inventory, Journal(folder / "journal.db", told))
        RequestLog(cluster)
        Telemetry(cluster, metrics)
        driver = await stack.enter_async_context(
            alive(cluster, made.policy, keep_engines=order.keep_engines)
        )
        operations = AdminService(cluster, driver, order.policy, stock.remove)
        reload = Reload(asked, order, stock, managers, cluster, driver, operations, gateway)
        operations.reloads = reload
        front.enter_context(incoming(cluster, stock, operations))
        all_notes = (
            *notes,
            *stock.notes,
            *cluster.notes,
            *_clashes(config, given),
            *access_notes(config),
            *gateway.grpc_notes(),
            *few,
        )
        server = Server(cluster, driver, operations, metrics, url, all_notes, signals.stop, reload)
        signals.serve(server.hurry, lambda: cluster.spawn(reload.take_up()))
        gateway.desk.open(cluster.dispatcher, operations)
        cluster.spawn(operations.update_adopted())
        if asked.watch_config and asked.file is not None:
            look = partial(watch_config, reload)
            watching = cluster.spawn(always(cluster, "configuration", look))
            server.on_end(watching.cancel)
        try:
            yield server
        finally:
            for do in server.ends:
                do()
            await farewell(cluster)  # while the gateway can still pass the answers on
            await front.aclose()


def _with_ram(given: LiveInput, config: Config, inventory: Inventory) -> LiveInput:
    """Have the machine's RAM read, unless GPUs are simulated: nothing is pinned for those.

    Whatever is served at the start: a reload may bring engines that do pin RAM.
    """
    if inventory.pretend:
        return given
    reserve = host_memory.reserve_bytes(host_memory.read().total_bytes, config.live.host_reserve)
    return replace(given, host_memory=host_memory.reader(), host_reserve_bytes=reserve)


def _clashes(config: Config, given: LiveInput) -> list[str]:
    sleep = any(one.runtime == "vllm" and one.model.can_sleep for one in given.served)
    return sleep_clashes(config, os.environ) if sleep else []
