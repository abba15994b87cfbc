"""From a configuration to a running server: what `modelium run` does, for scripts as well."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.config import Config, Plan, find, make_plan, read
from modelium.config.liveplan import live_input
from modelium.config.schema import Cluster, GpuGroup, NodeEntry
from modelium.core import Policy
from modelium.errors import ConfigError
from modelium.live.bookkeeping import Bookkeeper
from modelium.live.cluster import LiveCluster
from modelium.live.inventory import Inventory, NvmlInventory, PretendInventory
from modelium.live.journal import Journal
from modelium.live.life import alive
from modelium.live.operations import Operations
from modelium.live.recording import about
from modelium.live.telemetry import Telemetry
from modelium.metrics import ModeliumMetrics
from modelium.registry import make_policy, with_defaults

if TYPE_CHECKING:
    from modelium.live.driving import Driver
    from modelium.managers.engine import Manager


DEFAULT_POLICY = "lru"


@dataclass(frozen=True)
class Order:
    """What to serve, and how."""

    config: Config
    policy: str = "lru"
    """As on the command line."""
    emulate: bool = False
    """Serve every model with an emulated engine."""
    keep_engines: bool = False
    """Leave the engines running at the end, for the next start to adopt."""
    seed: int = 0


def order(
    config: Path | None,
    policy: str = "",
    *,
    gpus: str = "",
    host: str | None = None,
    port: int | None = None,
    emulate: bool = False,
    speed: float | None = None,
    keep_engines: bool = False,
    seed: int = 0,
) -> Order:
    """Read the configuration and let the command line's words go first. Raises ModeliumError."""
    path = find(config)
    if path is None and not emulate:
        raise ConfigError(
            "no configuration was found; `modelium init` writes one (or try --emulate --gpus"
            " 4xh100-80g with a configuration that names models)"
        )
    given = read(path) if path else Config()
    address = {"host": host, "port": port}
    changed = {key: value for key, value in address.items() if value is not None}
    updates: dict[str, Any] = {"gateway": given.gateway.model_copy(update=changed)}
    if speed is not None:
        updates["emulated"] = given.emulated.model_copy(update={"speed": speed})
    if gpus:
        fleet = Cluster.model_validate({"gpus": gpus}).gpus
        updates["cluster"] = given.cluster.model_copy(update={"gpus": fleet, "nodes": []})
    named = policy or (given.policy[0] if given.policy else DEFAULT_POLICY)
    return Order(given.model_copy(update=updates), named, emulate, keep_engines, seed)


@dataclass
class Server:
    """A running server."""

    cluster: LiveCluster
    driver: Driver
    operations: Operations
    metrics: ModeliumMetrics
    url: str
    notes: tuple[str, ...]
    """What had to be assumed."""
    stop: asyncio.Event


@asynccontextmanager
async def serving(order: Order) -> AsyncIterator[Server]:
    """Serve until the body ends or a signal sets `Server.stop`. Raises ModeliumError."""
    config = order.config
    inventory, plan, notes = _hardware(order)
    policy, name, parameters = _policy(order, plan)
    given = live_input(config, plan, emulate=order.emulate)
    folder = Path(config.live.folder)
    slos = {one.model.name: one.model.slo for one in given.served}
    told = about(given.gpus, slos, name, parameters, shlex.join(["modelium", *sys.argv[1:]]))
    managers = _managers(order, folder, {one.runtime for one in given.served})
    journal = Journal(folder / "journal.db", told)
    cluster = LiveCluster(given, managers, inventory, journal)
    metrics = ModeliumMetrics()
    Bookkeeper(cluster)
    Telemetry(cluster, metrics)
    async with contextlib.AsyncExitStack() as stack:
        if config.metrics.enabled:
            metrics.start_server(config.metrics.port)
            stack.callback(metrics.stop_server)
        driver = await stack.enter_async_context(
            alive(cluster, policy, keep_engines=order.keep_engines)
        )
        operations = Operations(cluster, driver, order.policy)
        url = await stack.enter_async_context(_gateway(config, cluster, operations))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            cluster.loop.add_signal_handler(number, stop.set)
            stack.callback(cluster.loop.remove_signal_handler, number)
        yield Server(cluster, driver, operations, metrics, url, notes, stop)
        cluster.reception.close("the server is stopping")


def _policy(order: Order, plan: Plan) -> tuple[Policy, str, dict[str, str]]:
    """The policy, its name and its parameters. Raises PolicyError."""
    name, given = with_defaults(order.policy, plan.policy_defaults)
    words = ",".join(f"{key}={value}" for key, value in given.items())
    policy = make_policy(f"{name}:{words}", rng_seed=order.seed, models=plan.models)
    return policy, name, given


def _hardware(order: Order) -> tuple[Inventory, Plan, tuple[str, ...]]:
    """Real GPUs where there are some, else those of the configuration, which is said aloud."""
    config = order.config
    if not order.emulate and not config.emulated.enabled:
        with contextlib.suppress(ConfigError):
            inventory = NvmlInventory()
            plan = make_plan(_on(config, inventory))
            return inventory, plan, (f"{len(plan.hardware.gpus)} GPUs found by NVML",)
    if not (config.cluster.gpus or config.cluster.nodes):
        raise ConfigError(
            "no NVIDIA GPU was found; name GPUs to pretend in the configuration, such as"
            " cluster: {gpus: 4xh100-80g}, or give --gpus"
        )
    plan = make_plan(config)
    gpus = plan.hardware.gpus
    kinds = ", ".join(f"{sum(g.kind == k for g in gpus)} x {k}" for k in plan.hardware.kinds())
    return PretendInventory(gpus), plan, (f"no real GPUs are used: {kinds} are pretended",)


def _on(config: Config, inventory: NvmlInventory) -> Config:
    """The configuration with the GPUs that are there, all on one node."""
    readings = [reading for reading in inventory.read().values() if not reading.lost]
    groups = [GpuGroup(kind=reading.kind, memory=reading.total_bytes) for reading in readings]
    node = NodeEntry(name="node0", gpus=groups)
    cluster = config.cluster.model_copy(update={"gpus": [], "nodes": [node]})
    return config.model_copy(update={"cluster": cluster})


def _managers(order: Order, folder: Path, runtimes: set[str]) -> dict[str, Manager]:
    """A manager for each runtime that some model needs."""
    makers = {"emulated": _emulated}
    return {name: makers[name](order.config, folder) for name in sorted(runtimes)}


def _emulated(config: Config, folder: Path) -> Manager:
    from modelium.managers import EmulatedManager

    manager: Manager = EmulatedManager(
        folder=(folder / "emulated").resolve(), speed=config.emulated.speed
    )
    return manager


def _gateway(
    config: Config, cluster: LiveCluster, operations: Operations
) -> AbstractAsyncContextManager[str]:
    from modelium.gateway.desk import Desk, Settings
    from modelium.gateway.keys import Keys
    from modelium.gateway.limits import Limits, Rate
    from modelium.gateway.server import Address, listening

    given = config.gateway
    certificate, key = given.tls_certificate, given.tls_key
    address = Address(
        given.host,
        given.port,
        Path(certificate) if certificate else None,
        Path(key) if key else None,
    )
    rates = {name: Rate(**limit.model_dump()) for name, limit in given.organizations.items()}
    limits = Limits(cluster.now_s, Rate(**given.limits.model_dump()), rates)
    settings = Settings(
        max_body_bytes=given.max_body,
        allowed_origins=tuple(given.allowed_origins),
        open_admin=address.loopback,
    )
    keys = Keys(Path(given.keys)) if given.keys else None
    return listening(Desk(cluster.reception, operations, limits, keys, settings), address)
