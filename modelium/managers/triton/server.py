"""Triton servers: those that Modelium starts, one a GPU, and one that somebody else runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from modelium.managers import environment
from modelium.managers.engine import Engine, EngineError, Order
from modelium.managers.identity import Process, runs
from modelium.managers.ports import Ports
from modelium.managers.process import Processes, tail
from modelium.managers.triton.client import Client, GoneError, Tensor
from modelium.managers.triton.entry import erase
from modelium.managers.triton.layout import Layout
from modelium.storage.permissions import write_private

STARTED_S = 30.0
"""A server that does not listen after this time will not."""
PORT_TRIES = 3
EXIT_S = 10
"""Seconds that a server gives requests in flight when it is told to end."""
IDLE_S = 1.0
"""The same for one that has nothing left to lose."""
RELOAD_S = 600.0
LOOK_S = 0.02
SHM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU of a server of ours."""

    device: int
    uuid: str = ""

    @classmethod
    def of(cls, one: Order | Engine) -> Gpu:
        """The first GPU of an order or engine."""
        return cls(one.devices[0], one.uuids[0] if one.uuids else "")

    @property
    def name(self) -> str:
        """The same after a restart: its number may have changed by then, but not its UUID."""
        return self.uuid or f"gpu{self.device}"


class Remote:
    """A server that somebody else runs, and serves the folder `repository`."""

    process: Process | None = None

    def __init__(self, url: str, grpc: str, repository: Path) -> None:
        self.url, self.grpc, self.repository = url, grpc, repository
        self.lock = threading.RLock()
        self.client = Client(grpc)
        self.generation = 0
        self.loaded: dict[str, list[Tensor]] = {}

    def join(self, entry: str, go_on: Callable[[], None]) -> None:
        """An entry is about to be loaded. Raises EngineError if the server is not there.

        `go_on` raises where nobody wants it any more.
        """
        if not self.client.live(STARTED_S):
            raise GoneError(f"no Triton answers at {self.grpc}")

    def leave(self, entry: str) -> None:
        """It is not there any more."""
        self.loaded.pop(entry, None)
        erase(self.repository, entry)

    def keep(self, engine: Engine, inputs: list[Tensor]) -> None:
        """Its entry is loaded, now or by an earlier self."""
        self.loaded[engine.name] = inputs

    def runs(self) -> bool:
        """Whether its process is there, as far as that can be known."""
        return True

    def repair(self, generation: int, why: str) -> None:
        """Raises EngineError: it is not ours to restart."""
        raise EngineError(f"{why}; the Triton at {self.grpc} is not Modelium's to restart")

    def workers(self, entry: str) -> list[psutil.Process]:
        """The processes that run an entry's code, where they can be seen."""
        return []

    def told(self) -> str:
        """Its last words."""
        return ""

    def close(self) -> None:
        """Let go of it."""
        self.client.close()


class Server(Remote):
    """A server of ours, for one GPU. Its entries are loaded again when it had to be restarted.

    `lock` is held while it starts, ends or is repaired.
    """

    def __init__(
        self,
        processes: Processes,
        layout: Layout,
        ports: Ports,
        gpu: Gpu,
        host: str,
        env: Mapping[str, str],
    ) -> None:
        self.name, self.gpu = f"triton-{gpu.name}", gpu
        self.repository = processes.folder / "repository" / gpu.name
        self.lock = threading.RLock()
        self.generation = 0
        self.loaded: dict[str, list[Tensor]] = {}
        self.process: Process | None = None
        self._listens = False
        """`client` speaks to it: not yet while it starts."""
        self._host, self._env, self._layout = host, dict(env), layout
        self._processes, self._ports = processes, ports
        self._members: set[str] = set()
        self._numbers: tuple[int, ...] = ()
        self._extras: dict[str, dict[str, Any]] = {}
        """Of engines by entry; the executor has them, too."""
        self._note = processes.folder / f"{self.name}.json"
        """Where a later self finds the server, restarted or not."""

    # Coming and going

    def join(self, entry: str, go_on: Callable[[], None]) -> None:
        with self.lock:
            go_on()  # it may have left already, while the server was somebody else's to repair
            self._members.add(entry)
            if not self.runs():
                self._restart()

    def leave(self, entry: str) -> None:
        """It is not there any more; a server without entries holds memory for nothing."""
        with self.lock:
            self._members.discard(entry)
            self.loaded.pop(entry, None)
            self._extras.pop(entry, None)
            erase(self.repository, entry)
            if not self._members:
                self._end(IDLE_S)

    def adopt(self) -> bool:
        """Take over what an earlier self started; False if that does not run any more."""
        with self.lock:
            if self.process is None:
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    told = json.loads(self._note.read_text(encoding="utf-8"))
                    process = Process.from_dict(told)
                    if runs(process):
                        self.process, self._numbers = process, tuple(map(int, told["ports"]))
                        for port in self._numbers:
                            self._ports.hold(port)
                        self._connect()
            return self.runs()

    def keep(self, engine: Engine, inputs: list[Tensor]) -> None:
        with self.lock:
            self._members.add(engine.name)
            self.loaded[engine.name] = inputs
            assert isinstance(engine.extra, dict), "plain data"
            self._extras[engine.name] = engine.extra
            self._tell(engine.name)

    def _tell(self, entry: str) -> None:
        """Let its engine know which processes it has, now that they are others."""
        if self.process is not None and entry in self._extras:
            pids = [worker.pid for worker in self.workers(entry)]
            self._extras[entry].update(server_pid=self.process.pid, pids=pids, grpc=self.grpc)

    @property
    def members(self) -> set[str]:
        """Entries that are loaded or about to be."""
        return set(self._members)

    def runs(self) -> bool:
        return self._listens and self.process is not None and runs(self.process)

    def told(self) -> str:
        return tail(self._processes.log(self.name))

    def workers(self, entry: str) -> list[psutil.Process]:
        mark, found = f"{self.repository / entry}{os.sep}", []
        with contextlib.suppress(psutil.Error):
            if self.process is not None and runs(self.process):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if any(mark in word for word in child.cmdline()):
                            found.append(child)
        return found

    def close(self) -> None:
        with self.lock:
            if not self._members:
                self._end(0.0)

    # Repair

    def repair(self, generation: int, why: str) -> None:
        """End the server, start it again on the same ports and load again what it had.

        Nothing is done if that happened since `generation`. An entry that does not come back is
        no longer in `loaded`. Raises EngineError if the server does not start.
        """
        with self.lock:
            if generation != self.generation or not self._members:
                return
            self._restart()
            for entry in list(self.loaded):
                try:
                    self.client.load(entry, RELOAD_S)
                    self._tell(entry)
                except EngineError:
                    self.loaded.pop(entry, None)

    def _restart(self) -> None:
        numbers = self._numbers
        self._end(0.0)
        try:
            for _ in range(PORT_TRIES):
                if self._started(numbers or tuple(self._ports.take() for _ in range(3))):
                    return
                told = self.told()
                self._end(0.0)
                if "already in use" not in told and "Address already" not in told:
                    break
                numbers = ()
        finally:  # whoever saw it down meanwhile need not do it again
            self.generation += 1
        last = (told.strip().splitlines() or ["it did not say why"])[-1]
        raise EngineError(f"Triton for GPU {self.gpu.device} does not start: {last[-300:]}")

    def _started(self, ports: tuple[int, ...]) -> bool:
        """Spawn it and wait until it listens."""
        self._numbers = ports
        for port in ports:
            self._ports.hold(port)
        self.repository.mkdir(parents=True, exist_ok=True)
        self.process = self._processes.spawn(
            self.name, self._command(), self._layout.variables(self._variables())
        )
        told = self.process.as_dict()
        write_private(self._note, json.dumps({**told, "ports": ports}))
        trial, until_s = Client(self._at(1)), time.monotonic() + STARTED_S
        try:
            while time.monotonic() < until_s:
                if trial.live(1.0) and self._listens_by_http():
                    self._connect()
                    return True
                if self._processes.wait(self.name, LOOK_S) is not None:
                    return False
            return False
        finally:
            trial.close()

    def _listens_by_http(self) -> bool:
        """Also on the ports that come after gRPC's: one of them that is taken ends the server."""
        ports = ((self._numbers[0], "/v2/health/live"), (self._numbers[2], "/metrics"))
        return all(_answers(self._host, port, path) for port, path in ports)

    def _command(self) -> list[str]:
        backends = self._layout.backends_in(self._processes.folder / "backends")
        command = [
            str(self._layout.server),
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            f"--exit-timeout-secs={EXIT_S}",
        ]
        for kind, port in zip(("http", "grpc", "metrics"), self._numbers, strict=True):
            command += [f"--{kind}-address={self._host}", f"--{kind}-port={port}"]
        if not self._layout.has("onnxruntime"):  # its configurations are complete, and it takes 1 s
            command.append("--disable-auto-complete-config")
        return command

    def _variables(self) -> dict[str, str]:
        uuids = [self.gpu.uuid] if self.gpu.uuid else []
        return {**self._env, **environment.gpus(uuids, [self.gpu.device])}

    @property
    def _prefix(self) -> str:
        """Of its shared memory: its own, so that what a killed server left can be removed."""
        return f"{self._processes.scratch(self.name).parent.name}-{self.gpu.name}-"

    def _at(self, which: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._numbers[which]}"

    def _connect(self) -> None:
        self.url, self.grpc = f"http://{self._at(0)}", self._at(1)
        self.client = Client(self.grpc)
        self._listens = True

    def _end(self, grace_s: float) -> None:
        """End it with all its processes, files and shared memory."""
        if self._listens:
            self._listens = False
            self.client.close()
        self._processes.end(self.name, self.process, grace_s)
        self.process = None
        for port in self._numbers:
            self._ports.give(port)
        self._numbers = ()
        self._note.unlink(missing_ok=True)
        for left in SHM.glob(f"{self._prefix}*"):
            left.unlink(missing_ok=True)


def _answers(host: str, port: int, path: str) -> bool:
    """Whether somebody answers there with success within a second."""
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def silent(server: Remote, deadline_s: float) -> str:
    """Why a server as a whole cannot serve; "" if it answers."""
    if not server.runs():
        return "the Triton server has ended"
    if not server.client.live(deadline_s):
        return f"the Triton server gave no answer in {deadline_s:g} s"
    return ""


def cpu_s(some: Iterable[psutil.Process]) -> float:
    """Seconds of CPU time that processes have used."""
    used = 0.0
    for one in some:
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            used += times.user + times.system
    return used
