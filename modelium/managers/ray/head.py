"""Ray itself: a head of ours on this machine, or a cluster that somebody else runs."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from modelium.managers import environment as environments
from modelium.managers.engine import EngineError
from modelium.managers.identity import Process, runs
from modelium.managers.ports import Ports
from modelium.managers.process import Processes, tail
from modelium.managers.ray.driver import Driver, LostError
from modelium.storage.permissions import write_private

HEAD = "head"
STARTED_S = 120.0
"""A head that is not up after this time will not be; on a busy machine it takes 20 s.
So much has one to answer, too."""
PORT_TRIES = 3
GRACE_S = 5.0
LEAVE_S = 20.0
LOOK_S = 0.1
OBJECTS_BYTES = 200 << 20
"""Of shared memory for what goes between processes: requests and answers, no weights."""
COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # replicas keep the GPUs that they are given
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else the node leaves the loopback
    "RAY_AUTH_MODE": "disabled",  # else a token is written to the home directory
    "RAY_prestart_worker_first_driver": "0",
}
_STARTED = "Ray runtime started"


class Ray:
    """One Ray and the driver that is connected to it. Safe to use from several threads."""

    def __init__(
        self,
        processes: Processes,
        program: Path,
        address: str | None,
        ports: Ports,
        host: str,
        env: Mapping[str, str],
    ) -> None:
        self.host = host if address is None else _host(address)
        self.is_ours = address is None
        self.members: set[str] = set()
        """Applications that are there or about to be: while there are some, a head stays."""
        self.process: Process | None = None
        self._address, self._program, self._bind = address, program, host
        self._processes, self._ports, self._env = processes, ports, dict(env)
        self._numbers: tuple[int, ...] = ()
        """Ports of the head, of Ray's own clients, and of Serve; of a foreign Ray the last."""
        self._driver: Driver | None = None
        self._lock = threading.RLock()
        self._note = processes.folder / "ray.json"
        """Where a later self finds the head, or that Serve on a foreign one is ours."""

    @property
    def log(self) -> Path | None:
        """The head's log file, if the head is ours."""
        return self._processes.log(HEAD) if self.is_ours else None

    def runs(self) -> bool:
        """Whether the head is there, as far as that can be known."""
        return not self.is_ours or (self.process is not None and runs(self.process))

    def ensure(self, deadline_s: float, go_on: Callable[[], None] = lambda: None) -> int:
        """Have a Ray with Serve, and return the port that Serve listens on. Raises EngineError.

        `go_on` raises where nobody wants it any more.
        """
        until_s = time.monotonic() + deadline_s
        with self._held(deadline_s):
            go_on()  # it may have been given up while it waited: then a head would be nobody's
            if not self.runs():
                self._begin()
                with contextlib.suppress(EngineError):
                    return self._serve(until_s)
                self._begin()  # somebody took Serve's port meanwhile: on others
            return self._serve(until_s)

    def ask(self, call: str, deadline_s: float, **given: Any) -> dict[str, Any]:
        """Have the driver do something, by another one if it was lost. Raises EngineError."""
        with self._held(deadline_s):
            if not self.runs():
                raise LostError("Ray's head has ended")
            try:
                return self._connected(deadline_s).ask(call, deadline_s, **given)
            except LostError:
                self._disconnect()
                raise

    def states(self, deadline_s: float) -> dict[str, dict[str, str]]:
        """What Ray says of every application: its "state", and what it "said"."""
        return self.ask("states", deadline_s)

    def replicas(self, app: str) -> list[psutil.Process]:
        """The processes on this machine that serve an application."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (words := one.cmdline()) and words[0].startswith(f"ray::ServeReplica:{app}:"):
                    found.append(one)
        return found

    def adopt(self) -> bool:
        """Take over the head that an earlier self started; whether one runs."""
        with self._lock:
            if self.is_ours and not self.runs():
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    told = json.loads(self._note.read_text(encoding="utf-8"))
                    process = Process.from_dict(told)
                    if runs(process):
                        self.process, self._numbers = process, tuple(map(int, told["ports"]))
                        self._processes.claim(HEAD)
                        for port in self._numbers:
                            self._ports.hold(port)
            return self.runs()

    def close(self) -> None:
        """Let go of it; what we started, a head or a foreign one's Serve, ends with its work."""
        with self._lock:
            if self._began() and not self.members:
                with contextlib.suppress(EngineError):
                    self.ask("leave", LEAVE_S)
                    self._note.unlink()
            self._disconnect()
            if self.is_ours and not self.members:
                self._end(GRACE_S)

    def clear(self) -> None:
        """End what a head that has ended left."""
        with self._lock:
            if not self.runs():
                self._end(0.0)

    # The driver

    @contextlib.contextmanager
    def _held(self, deadline_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline_s)):
            raise EngineError(f"Ray was busy for {deadline_s:g} s")
        try:
            yield
        finally:
            self._lock.release()

    def _serve(self, until_s: float) -> int:
        """The port that Serve listens on."""
        return int(self._connected(max(1.0, until_s - time.monotonic())).told["http_port"])

    def _connected(self, deadline_s: float) -> Driver:
        if self._driver is not None and not self._driver.runs():
            self._disconnect()
        if self._driver is None:
            self._numbers = self._numbers or (self._ports.take(),)
            target: dict[str, Any] = {"port": self._numbers[-1], "ours": self.is_ours}
            if self.is_ours:
                target |= {"address": f"{self._bind}:{self._numbers[0]}", "host": self._bind}
            else:
                target |= {"address": self._address, "host": self.host}
            python, left_s = self._program.parent / "python", min(deadline_s, STARTED_S)
            try:
                self._driver = Driver(self._processes, python, self._variables(), target, left_s)
            except LostError as error:
                raise LostError(f"no Ray answers at {target['address']}: {error}") from error
            except EngineError:
                if not self.is_ours:
                    self._numbers = ()  # the next try is on another port
                raise
            if self._driver.told["began"] and not self.is_ours:
                write_private(self._note, json.dumps({"serve": self._address}))
        return self._driver

    def _began(self) -> bool:
        """Whether Serve on a foreign Ray was started by us, now or by an earlier self."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            told = json.loads(self._note.read_text(encoding="utf-8"))
            return not self.is_ours and told.get("serve") == self._address
        return False

    def _disconnect(self) -> None:
        if self._driver is not None:
            self._driver.end()
        self._driver = None

    # The head

    def _begin(self) -> None:
        """Start a head, on other ports where somebody took them first."""
        told = ""
        for _ in range(PORT_TRIES):
            self._end(0.0)
            self._numbers = tuple(self._ports.take() for _ in range(3))
            if self._started():
                return
            told = tail(self._processes.log(HEAD))
            if "already in use" not in told:
                break
        self._end(0.0)
        last = next((line for line in told.splitlines()[::-1] if line.strip()), "it said nothing")
        raise EngineError(f"Ray does not start: {last.strip()[-300:]}")

    def _started(self) -> bool:
        try:
            self._processes.claim(HEAD)
            self.process = self._processes.spawn(HEAD, self._command(), self._variables())
        except OSError as error:
            raise EngineError(f"{self._program}: {error.strerror}") from error
        told = self.process.as_dict()
        write_private(self._note, json.dumps({**told, "ports": self._numbers}))
        until_s = time.monotonic() + STARTED_S
        while time.monotonic() < until_s:
            if _STARTED in tail(self._processes.log(HEAD), 100):
                return True
            if self._processes.wait(HEAD, LOOK_S) is not None:
                return False
        return False

    def _command(self) -> list[str]:
        """Every port is free or chosen by the system: several heads share a machine."""
        port, clients, _ = self._numbers
        command = [str(self._program), "start", "--head", "--block", f"--port={port}"]
        command += [f"--node-ip-address={self._bind}", f"--ray-client-server-port={clients}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--metrics-export-port=0"]
        command += ["--dashboard-agent-listen-port=0", "--runtime-env-agent-port=0"]
        command += ["--include-dashboard=false", "--disable-usage-stats", "--num-gpus=0"]
        command += [f"--object-store-memory={OBJECTS_BYTES}"]
        return [*command, f"--temp-dir={self._processes.scratch(HEAD)}"]

    def _variables(self) -> dict[str, str]:
        own = environments.variables(self._program)
        for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):  # each replica is told its own GPUs
            own.pop(name, None)
        return {**own, **COMMON, **(LOCAL if self.is_ours else {}), **self._env}

    def _end(self, grace_s: float) -> None:
        """End the head with everything that it started, and its files."""
        self._disconnect()
        self._processes.end(HEAD, self.process, grace_s)
        self._processes.release(HEAD)
        self.process = None
        for port in self._numbers:
            self._ports.give(port)
        self._numbers = ()
        self._note.unlink(missing_ok=True)


def _host(address: str) -> str:
    """Where a cluster's Serve is reached: on its head."""
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    return host or "127.0.0.1"
