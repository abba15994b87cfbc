"""`modelium run` as a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from modelium.client.client import Client

WITHIN_S = 300.0
"""Whatever a test waits for has come by then, on the slowest machine."""
GONE_S = 30.0
LOOK_S = 0.05


@dataclass
class Running:
    """One server."""

    process: subprocess.Popen[str]
    url: str
    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    over: bool = False
    """It says nothing more."""

    @property
    def client(self) -> Client:
        return Client(self.url)

    def wait_for(self, what: str, **about: Any) -> dict[str, Any]:
        """The first event of this kind, once it has come."""

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event["event"] == what and about.items() <= event.items():
                    return event
            return None

        with self.changed:
            self.changed.wait_for(lambda: found() or self.over, WITHIN_S)
            event = found()
        told = (self.folder / "stderr").read_text()
        assert event is not None, f"no {what} {about} in {self.events}; {told}"
        return event

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.process.wait(WITHIN_S)

    def hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError), self.changed:
                self.events.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()


@contextmanager
def running(
    folder: Path,
    config: Mapping[str, Any],
    *options: str,
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Running]:
    """Start a server in `folder`; whatever happens, nothing of it is left.

    `within`: words before the command, of a program that runs it.
    """
    folder.mkdir(exist_ok=True)
    text = {"metrics": {"enabled": False}, **config}
    (folder / "modelium.yaml").write_text(yaml.safe_dump(text))
    command = [sys.executable, "-m", "modelium", "run", "--port", "0", "--log-format", "json"]
    with (folder / "stderr").open("a") as errors:
        process = subprocess.Popen(
            [*within, *command, *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**(env or os.environ), "MODELIUM_CONFIG": ""},
        )
    with process:
        server = Running(process, "", folder)
        hearing = threading.Thread(target=server.hear)
        hearing.start()
        try:
            server.url = server.wait_for("serving")["url"]
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(WITHIN_S)
                process.kill()
            hearing.join()


def until(true: Callable[[], Any]) -> Any:
    """Look until a call gives something true; return that."""
    until_s = time.monotonic() + WITHIN_S
    while not (found := true()):
        assert time.monotonic() < until_s, "it did not come true"
        time.sleep(LOOK_S)
    return found


def left_behind(folder: Path) -> list[int]:
    """Processes whose command line names this folder."""
    return [process.pid for process in _there(folder)]


def still_there(folder: Path) -> list[str]:
    """The command lines of such processes that do not go.

    Those that were killed take a moment: they are listed until their memory is given back.
    """
    _, alive = psutil.wait_procs(_there(folder), timeout=GONE_S)
    return [f"{process.pid} {' '.join(process.cmdline())}" for process in alive]


def sweep(folder: Path) -> None:
    """End what a test that failed has left."""
    there = _there(folder)
    for process in there:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(there, timeout=GONE_S)


def _there(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
