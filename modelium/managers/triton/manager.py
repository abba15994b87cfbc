"""Triton: models loaded into and unloaded from servers of NVIDIA's Triton Inference Server.

    manager = TritonManager()
    manager.load_model("resnet50", "/models/resnet50")
    manager.is_model_loaded("resnet50")
    manager.unload_model("resnet50")

Without `url`, the manager starts a server for each GPU it is given a model for, and restarts it
with all its models where it dies or hangs; a server of which the last model has gone is ended.
Triton is not imported: it has an environment of its own (`make engines`).
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from os import getuid
from pathlib import Path
from typing import Any

from modelium.managers.causes import final
from modelium.managers.engine import Engine, EngineError, Order, Progress, StartError
from modelium.managers.hang_detector import Stalls
from modelium.managers.legacy_api import ByName
from modelium.managers.ports import Ports
from modelium.managers.process import Processes
from modelium.managers.starting import Start
from modelium.managers.triton import layout as triton_layout
from modelium.managers.triton.client import (
    BrokenModelError,
    GoneError,
    NoAnswerError,
    NotThereError,
    Tensor,
    bumped,
)
from modelium.managers.triton.entry import entry_name, write
from modelium.managers.triton.server import Gpu, Remote, Server, cpu_s, silent
from modelium.managers.triton.unload import remove

TRIES = 3
"""Loads of one model while its server dies under it."""
RELOAD_S = 60.0
ADOPT_S = 10.0
SPARE_S = 5.0
"""The start notices its deadline itself; calls end later, in threads that nobody waits for."""
_TEXT = "transformers/"
_FINAL = re.compile(
    "unable to find backend|must specify|unexpected platform type|unable to find '|is not supported"
)
"""What Triton says of a configuration, or of a model's files, that it will never load."""


class TritonManager(ByName):
    """Loads models into Triton and unloads them. Safe to call from several threads."""

    runtime = "triton"
    grace_s = 60.0
    """Triton lets a model finish what it has before it unloads it."""

    def __init__(
        self,
        url: str | None = None,
        repository: str | Path | None = None,
        *,
        grpc: str | None = None,
        environment: Path | None = None,
        folder: Path | None = None,
        host: str = "127.0.0.1",
        base_port: int = 8500,
        env: Mapping[str, str] | None = None,
        stall_s: float = 60.0,
    ) -> None:
        """With `url` (and `grpc`, by default the next port) a running server is used.

        That one serves the folder `repository` with --model-control-mode=explicit. Otherwise
        servers of the installation `environment` are started on ports from `base_port` upwards,
        and `repository` is only where `load_model` looks for a model given without a path.
        `folder` keeps logs and tells one executor's servers from another's; `env` is added to the
        servers' environment. A model that ends no inference and uses no CPU for `stall_s` while
        one is asked of it is in trouble. Raises ConfigError.
        """
        super().__init__()
        default = Path(tempfile.gettempdir()) / f"modelium-triton-{getuid()}"
        self._processes = Processes(folder or default, self.runtime)
        self._host, self._ports = host, Ports(host, base_port)
        self._env, self._stall_s = dict(env or {}), stall_s
        self._repository = Path(repository).absolute() if repository is not None else None
        self._remote = None if url is None else _remote(url, grpc, self._repository)
        self._layout = None if url is not None else triton_layout.find(environment)
        self._lock = threading.Lock()
        self._servers: dict[str, Server] = {}
        """By the names of their GPUs."""
        self._stalls = Stalls()

    # By name, one instance a model

    def load_model(
        self, name: str, path: str | Path = "", gpu_id: int | Sequence[int] = 0, **settings: Any
    ) -> Engine:
        """Serve the model in the folder `path`, or in the repository; raises StartError."""
        if not path and self._repository is not None:
            path = self._repository / name
        return super().load_model(name, path, gpu_id, **settings)

    def in_flight(self, engine: Engine) -> bool:
        return False  # an unload waits for them

    def is_model_loaded(self, name: str) -> bool:
        """Whether it was loaded here and answers a real inference now."""
        engine = self._loaded.get(name)
        return engine is not None and not self.trouble(engine)

    # The interface of `modelium.managers.engine.Manager`

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        if len(order.devices) != 1:
            told = ", ".join(map(str, order.devices))
            why = f"{order.model}: Triton puts a model on one GPU, not on {told}"
            raise StartError(why, final=True)
        if self._remote is not None and Gpu.of(order).uuid.startswith("MIG-"):
            raise StartError(
                f"{order.model}: a Triton that runs already cannot be told to use a MIG instance;"
                " leave triton.url out, so that one is started there",
                final=True,
            )
        entry, start = entry_name(order.instance), Start(order, progress)
        server = self._server(Gpu.of(order))
        if entry in server.loaded:
            raise StartError(f"{order.instance} is loaded already")
        try:
            start.begin("server")
            start.watch(lambda: server.join(entry, start.go_on))
            return self._start(server, entry, start)
        except BaseException as error:
            try:
                remove(server, entry, 0.0)
            except EngineError:
                server.leave(entry)  # a server of its own ends with it, all the same
            if isinstance(error, EngineError):
                raise _explained(order, error, server) from error
            if isinstance(error, StartError) and not error.log:
                error.log = server.told()
            raise

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        server = self._of(engine)
        self._stalls.over(engine.name)
        if server is not None:
            remove(server, engine.name, grace_s)

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        raise EngineError(f"{engine.instance}: Triton cannot put models to sleep")

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        raise EngineError(f"{engine.instance}: Triton's models do not sleep")

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        """As the interface says. A server that died or hangs is repaired first, with all it had;
        that takes as long as its models take to load.
        """
        server, entry = self._of(engine), engine.name
        if server is None:
            return "its Triton server is not known"
        generation = server.generation
        try:
            if why := silent(server, deadline_s):
                server.repair(generation, why)
            if (inputs := server.loaded.get(entry)) is None:
                return "it was lost with its Triton server and did not load again"
            if self._remote is None and server.url != engine.url:
                return f"its Triton server is at {server.url} now: somebody took its port"
            return self._probe(server, entry, inputs, deadline_s)
        except EngineError as error:
            return str(error)

    def adopt(self, engine: Engine) -> bool:
        """As the interface says; the server that holds it is adopted with its first engine."""
        try:
            if self._remote is not None:
                server: Remote = self._remote
            else:
                server = ours = self._own(Gpu.of(engine))
                if not ours.adopt() or ours.url != engine.url:
                    return False
            inputs, _ = server.client.tensors(engine.name, ADOPT_S)
            self._infer(server, engine.name, inputs, ADOPT_S, engine.extra["kind"])
        except (EngineError, KeyError):
            return False
        server.keep(engine, inputs)
        return True

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        """As the interface says: servers without a known model, and models that nobody knows."""
        names = {engine.name for engine in known}
        ended = []
        with self._lock:
            servers = list(self._servers.values())
        for server in servers:
            with server.lock, contextlib.suppress(EngineError):
                if server.runs():
                    states = server.client.states(ADOPT_S)
                    for entry in {name for name, state in states.items() if state == "READY"}:
                        if entry not in server.members | names:
                            server.client.unload(entry, ADOPT_S)
                            ended.append(f"Triton's model {entry}")
        keep = {server.name for server in servers if server.process is not None}
        return [*ended, *(f"Triton server {name}" for name in self._processes.sweep(keep))]

    def close(self) -> None:
        with self._lock:
            servers = [*self._servers.values(), *([self._remote] if self._remote else [])]
        for server in servers:
            server.close()

    # Starting

    def _start(self, server: Remote, entry: str, start: Start) -> Engine:
        order, gpu = start.order, _gpu(start.order, own=self._remote is None)
        start.begin("files")
        kind = start.watch(lambda: write(server.repository, entry, order, self._layout, gpu))
        start.begin("weights")
        self._load(server, entry, start)
        inputs, outputs = server.client.tensors(entry, start.left_s)
        start.begin("canary")
        start.watch(lambda: self._infer(server, entry, inputs, start.left_s + SPARE_S, kind))
        start.begin("")
        extra: dict[str, Any] = {
            "kind": kind,
            "grpc": server.grpc,
            "inputs": [tensor.name for tensor in inputs],
            "outputs": [tensor.name for tensor in outputs],
        }
        engine = Engine(
            instance=order.instance,
            model=order.model,
            runtime=self.runtime,
            url=server.url,
            api="kserve",
            name=entry,
            devices=order.devices,
            uuids=order.uuids,
            log="" if self._remote else str(self._processes.log(self._own(Gpu.of(order)).name)),
            stages=start.seconds,
            extra=extra,
        )
        server.keep(engine, inputs)
        return engine

    def _load(self, server: Remote, entry: str, start: Start) -> None:
        """Load it, again where the server died of another model's unload meanwhile."""
        for left in reversed(range(TRIES)):
            generation = server.generation
            try:
                return start.watch(lambda: server.client.load(entry, start.left_s + SPARE_S))
            except GoneError as error:
                if not left:
                    raise
                server.repair(generation, str(error))
        return None

    def _infer(
        self, server: Remote, entry: str, inputs: list[Tensor], deadline_s: float, kind: str
    ) -> None:
        """A real inference. A foreign model may refuse our zeros: that is an answer, too."""
        try:
            server.client.canary(entry, inputs, deadline_s)
        except (NoAnswerError, GoneError, NotThereError, BrokenModelError):
            raise
        except EngineError as error:
            if kind.startswith(_TEXT) or _no_memory(str(error)):
                raise

    # Watching

    def _probe(self, server: Remote, entry: str, inputs: list[Tensor], deadline_s: float) -> str:
        """Why an entry of a server that answers cannot serve; "" if it can, perhaps again."""
        try:
            self._infer(server, entry, inputs, deadline_s, "")
        except BrokenModelError:
            config = server.client.config(entry, deadline_s)
            server.client.load(entry, RELOAD_S, bumped(config))
            self._infer(server, entry, inputs, deadline_s, "")
        except NoAnswerError as error:
            still_s = self._stalls.still_s(entry, self._work(server, entry))
            return str(error) if still_s >= self._stall_s else ""
        self._stalls.over(entry)
        return ""

    def _work(self, server: Remote, entry: str) -> float:
        """Grows as it makes progress: inferences that ended, and its processes' CPU time."""
        return server.client.work(entry, ADOPT_S) + cpu_s(server.workers(entry))

    # Servers

    def _server(self, gpu: Gpu) -> Remote:
        return self._remote if self._remote is not None else self._own(gpu)

    def _own(self, gpu: Gpu) -> Server:
        assert self._layout is not None, "servers of ours are installed"
        with self._lock:
            if gpu.name not in self._servers:
                self._servers[gpu.name] = Server(
                    self._processes, self._layout, self._ports, gpu, self._host, self._env
                )
            return self._servers[gpu.name]

    def _of(self, engine: Engine) -> Remote | None:
        if self._remote is not None:
            return self._remote
        return self._servers.get(Gpu.of(engine).name)


def _remote(url: str, grpc: str | None, repository: Path | None) -> Remote:
    """Somebody else's server, from its HTTP address."""
    from urllib.parse import urlsplit

    from modelium.errors import ConfigError

    address = urlsplit(url if "//" in url else f"//{url}")
    if repository is None:
        raise ConfigError(f"Triton at {url}: give the folder that it serves as `repository`")
    if not address.hostname or not address.port:
        raise ConfigError(f"Triton at {url}: expected an address such as http://127.0.0.1:8000")
    host = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
    return Remote(f"http://{host}:{address.port}", grpc or f"{host}:{address.port + 1}", repository)


def _gpu(order: Order, *, own: bool) -> int | None:
    """The GPU by the server's own counting; a server of ours sees one. None on CPUs."""
    if not triton_layout.has_gpu():
        return None
    return 0 if own else order.devices[0]


def _no_memory(told: str) -> bool:
    return "out of memory" in told.lower() or "failed to allocate memory" in told.lower()


def _is_final(told: str) -> bool:
    """Whether it stays until a file or a setting is changed: as vLLM's, and Triton's own words."""
    return final(told) or bool(_FINAL.search(told))


def _explained(order: Order, error: EngineError, server: Remote) -> StartError:
    """Why a load failed: what the model said, without Triton's wrapping."""
    told = str(error).removeprefix(f"{entry_name(order.instance)}: ")
    for mark in ("Internal: ", "UNAVAILABLE state: ", "Invalid argument: "):
        told = told.rpartition(mark)[2] or told
    why, short = f"{order.model}: {told.partition(' At: ')[0].strip()}", _no_memory(told)
    return StartError(
        why, log=server.told(), out_of_memory=short, final=_is_final(told) and not short
    )
