"""vLLM: one server a model instance, each a process tree of its own on the GPUs it is given.

    manager = VLLMManager(base_port=8100)
    manager.load_model("llama-8b", "/models/llama-8b", gpu_id=0)
    manager.get_model_endpoint("llama-8b")      # http://127.0.0.1:8100
    manager.unload_model("llama-8b")

vLLM is not imported: it has an environment of its own (`make engines`).
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from os import getuid
from pathlib import Path

from modelium.managers import causes, settings
from modelium.managers import environment as environments
from modelium.managers.engine import Engine, EngineError, Order, Progress, StartError
from modelium.managers.identity import runs
from modelium.managers.legacy_api import ByName
from modelium.managers.ports import Ports
from modelium.managers.process import Processes, tail
from modelium.managers.starting import LOOK_S, Start
from modelium.managers.vllm import command as vllm_command
from modelium.managers.vllm import http as vllm_http
from modelium.managers.vllm import log as vllm_log

PORT_TRIES = 3
"""Starts on another port where somebody took the port first."""
ABORT_S = 2.0
ADOPT_S = 10.0
ASK_S = 5.0


class VLLMManager(ByName):
    """Starts, suspends and ends vLLM servers. Safe to call from several threads."""

    runtime = "vllm"

    def __init__(
        self,
        *,
        base_port: int = 8100,
        host: str = "127.0.0.1",
        environment: Path | None = None,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        stall_s: float = 60.0,
    ) -> None:
        """Ports are taken from `base_port` upwards.

        `environment` is the folder of the Python environment that holds vLLM, or its program.
        `folder` keeps logs and tells one executor's engines from another's; `env` is added to every
        engine's environment. A server that takes no step for `stall_s` is in trouble.
        Raises ConfigError if there is no vLLM.
        """
        super().__init__()
        self.program = environments.find("vllm", "vllm", environment)
        self.cpu = vllm_command.is_cpu_build(self.program)
        default = Path(tempfile.gettempdir()) / f"modelium-vllm-{getuid()}"
        self._processes = Processes(folder or default, self.runtime)
        self._host, self._ports = host, Ports(host, base_port)
        self._env, self._stall_s = dict(env or {}), stall_s
        self._lock = threading.Lock()
        self._turns: dict[int, threading.Lock] = {}
        self._still_since_s: dict[str, float] = {}

    def in_flight(self, engine: Engine) -> bool:
        """Whether it works on requests, by its own count."""
        return bool(vllm_http.in_flight(engine, ASK_S))

    # The interface of `modelium.managers.engine.Manager`

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        if order.path is None or not order.path.exists():
            raise StartError(f"{order.model}: its files are not at {order.path}", final=True)
        if found := settings.problem(self.runtime, order.settings):
            raise StartError(f"{order.model}: {found[1]}", final=True)
        start = Start(replace(order, path=order.path.absolute()), progress)
        self._processes.claim(order.instance)
        try:
            with self._turn(start):
                for _ in range(PORT_TRIES):
                    with contextlib.suppress(_PortTakenError):
                        return self._try(start, self._ports.take())
            raise StartError(f"{order.model}: others took {PORT_TRIES} ports before it could")
        except BaseException:
            self._processes.release(order.instance)
            raise

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        if grace_s > 0 and engine.process is not None and runs(engine.process):
            with contextlib.suppress(EngineError):
                vllm_http.abort(engine, min(ABORT_S, grace_s))
        self._processes.end(engine.instance, engine.process, grace_s)
        self._ports.give(_port(engine))
        self._still_since_s.pop(engine.instance, None)
        self._processes.release(engine.instance)

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        vllm_http.sleep(engine, level, deadline_s)

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        vllm_http.wake(engine, deadline_s)

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        """As the interface says; one that only takes no step has `stall_s` over several calls."""
        if engine.process is not None and not runs(engine.process):
            return "its process has ended"
        begun_s = time.monotonic()
        try:
            if vllm_http.moves(engine, deadline_s):
                self._still_since_s.pop(engine.instance, None)
                return ""
        except EngineError as error:
            return str(error)
        still_s = time.monotonic() - self._still_since_s.setdefault(engine.instance, begun_s)
        return f"it took no step for {still_s:.0f} s" if still_s >= self._stall_s else ""

    def adopt(self, engine: Engine) -> bool:
        if engine.process is None or not runs(engine.process):
            return False
        try:
            served = [one["id"] for one in vllm_http.ask(engine, "/v1/models", ADOPT_S)["data"]]
            if engine.name not in served or not vllm_http.moves(engine, ADOPT_S):
                return False
        except EngineError:
            return False
        self._ports.hold(_port(engine))
        self._processes.claim(engine.instance)
        return True

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        ended = self._processes.sweep(engine.instance for engine in known)
        return [f"vLLM of {instance}" for instance in ended]

    def close(self) -> None:
        """Nothing is held."""

    # Starting

    @contextlib.contextmanager
    def _turn(self, start: Start) -> Iterator[None]:
        """Wait until no other start is under way on its GPUs.

        vLLM measures the free memory of a GPU when it starts, and takes what changes meanwhile for
        its own.
        """
        with self._lock:
            devices = sorted(start.order.devices)
            turns = [self._turns.setdefault(device, threading.Lock()) for device in devices]
        with contextlib.ExitStack() as held:
            for turn in turns:
                while not turn.acquire(timeout=LOOK_S):
                    start.begin("queued")
                    start.go_on()
                held.callback(turn.release)
            yield

    def _try(self, start: Start, port: int) -> Engine:
        """One start on one port, with nothing left of it if it fails."""
        order = start.order
        command = vllm_command.command(self.program, order, self._host, port, cpu=self.cpu)
        variables = vllm_command.variables(self.program, order, self._env, cpu=self.cpu)
        process = None
        try:
            self._processes.end(order.instance, None, 0.0)  # what an earlier self left
            process = self._processes.spawn(order.instance, command, variables)
            log = self._processes.log(order.instance)
            host = f"[{self._host}]" if ":" in self._host else self._host
            engine = Engine(
                instance=order.instance,
                model=order.model,
                runtime=self.runtime,
                url=f"http://{host}:{port}",
                api="openai",
                name=order.model,
                devices=order.devices,
                uuids=order.uuids,
                process=process,
                log=str(log),
                extra={"sleep_mode": order.can_sleep},
            )
            return self._until_ready(start, engine)
        except BaseException as error:
            self._processes.end(order.instance, process, 0.0)
            self._ports.give(port)
            if isinstance(error, OSError):
                why = f"{order.model}: {error.strerror}: {error.filename}"
                raise StartError(why) from error
            if isinstance(error, EngineError | _EndedError):
                raise self._explained(order, error) from error
            if isinstance(error, StartError):
                error.log = tail(self._processes.log(order.instance))
            raise

    def _until_ready(self, start: Start, engine: Engine) -> Engine:
        """Follow the start until a first token was made; a listening server proves nothing."""
        start.begin("process")
        follower = vllm_log.Follower(Path(engine.log), start)
        while not vllm_http.healthy(engine):
            if (status := self._processes.wait(engine.instance, LOOK_S)) is not None:
                raise _EndedError(status)
            follower.read()
            start.go_on()
        follower.read()
        start.begin("canary")
        tasks = vllm_log.tasks(tail(Path(engine.log), 10_000, 1 << 20))
        if "embed" in tasks and "generate" not in tasks:
            engine = replace(engine, extra={**engine.extra, "task": "embed"})
        start.watch(lambda: vllm_http.canary(engine, start.left_s))
        start.begin("")
        return replace(engine, stages=start.seconds)

    def _explained(self, order: Order, error: Exception) -> StartError:
        """Why a start failed, from its log if that says it."""
        log = self._processes.log(order.instance)
        text = tail(log, 10_000, 1 << 20)
        cause = causes.cause(text)
        why = f"{order.model}: {(cause or str(error)).replace(str(order.path), order.model)}"
        kind = _PortTakenError if vllm_log.address_taken(text) else StartError
        short, final = causes.no_memory(why), causes.final(cause)
        return kind(why, log=tail(log), out_of_memory=short, final=final and not short)


class _PortTakenError(StartError):
    """Another program took the port between our look and the engine's."""


class _EndedError(Exception):
    """The process ended while it started."""

    def __init__(self, status: int) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"the engine's process {how} and did not say why")


def _port(engine: Engine) -> int:
    return int(engine.url.rpartition(":")[2])
