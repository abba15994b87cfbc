"""Processes of engines: each in a session of its own, with a log file, ended to the last member.

    processes = Processes(folder, "vllm")
    process = processes.spawn("llama-8b#1", ["vllm", "serve", ...], environment)
    processes.end("llama-8b#1", process, grace_s=10)

Engines start processes of their own, some of which outlive their parent, and hide what they are
(`setproctitle` writes over the environment that /proc shows). What belongs to an instance is told
by its session, by a mark in the environment, or by its working directory, which is the instance's
own and which nobody can overwrite.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psutil

from modelium.errors import ConfigError
from modelium.managers.engine import EngineError
from modelium.managers.identity import Process, holds_its_number, identify, runs
from modelium.storage.permissions import keep_private, private_file, private_folder

MARK = "MODELIUM_SCRATCH"
"""In the environment of every process of an engine: its instance's scratch directory."""
KILLED_S = 10.0
"""A process that was sent SIGKILL is gone within this time, or never."""
TRACKER_S = 2.0
"""Python's resource trackers have this long to remove the shared memory of killed processes."""
LOOK_S = 0.05
_TRACKER = "multiprocessing.resource_tracker"


def tail(log: Path, lines: int = 20, most_bytes: int = 65536) -> str:
    """The last lines of a log file; "" if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])


class Processes:
    """The processes of one manager's instances. Safe to use from several threads.

    Two managers with the same `folder` and runtime are one and its later self: each finds what the
    other left. `folder` keeps the logs.
    """

    def __init__(self, folder: Path, runtime: str) -> None:
        """Raises ConfigError if the folder cannot be made."""
        self.folder = folder.absolute()
        try:
            private_folder(self.folder)
            for file in (*self.folder.glob("*.log"), *self.folder.glob("*.json")):
                keep_private(file)  # of an earlier version
        except OSError as error:
            raise ConfigError(f"{folder}: no folder for logs: {error.strerror}") from error
        self._scratch = _root(f"{runtime} {self.folder}")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def log(self, instance: str) -> Path:
        """The log file of an instance."""
        return self.folder / f"{quote(instance, safe='#@')}.log"

    def scratch(self, instance: str) -> Path:
        """The working directory of an instance and the place of its temporary files.

        Its path is short, because sockets are made there and their paths have at most 107 bytes.
        """
        return self._scratch / _short(instance)

    def spawn(
        self,
        instance: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a process in a session of its own; what it prints goes to `log(instance)`.

        It inherits the open files `pass_fds`. Raises OSError if there is no such program.
        """
        scratch = self.scratch(instance)
        with self._lock:
            self._scratch.mkdir(mode=0o700, exist_ok=True)
            scratch.mkdir(mode=0o700, exist_ok=True)
        marked = {**environment, MARK: str(scratch), "TMPDIR": str(scratch)}
        log = self.log(instance)
        private_file(log)
        with log.open("wb") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=scratch,
                env=marked,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        with self._lock:
            self._children[instance] = child
        return identify(child.pid)

    def wait(self, instance: str, seconds: float) -> int | None:
        """Wait for the end of what was started here: its exit status, None if it runs still."""
        with self._lock:
            child = self._children[instance]
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, instance: str, process: Process | None, grace_s: float) -> None:
        """End an instance: SIGTERM, `grace_s` to obey, SIGKILL to all that is left.

        Returns when no process of it is left, however many there were, with its temporary files
        removed. Raises EngineError if something survives.
        """
        if process is not None and grace_s > 0 and runs(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            until_s = time.monotonic() + grace_s
            while runs(process) and time.monotonic() < until_s:
                time.sleep(LOOK_S)
        self._kill(instance, process)
        with self._lock:
            child = self._children.pop(instance, None)
            shutil.rmtree(self.scratch(instance), ignore_errors=True)
            with contextlib.suppress(OSError):  # others still have theirs in it
                self._scratch.rmdir()
        if child is not None:
            child.wait()

    def claim(self, instance: str) -> None:
        """This one is there or about to be: a sweep leaves it alone."""
        with self._lock:
            self._claimed.add(instance)

    def release(self, instance: str) -> None:
        """Whatever is there of it may go."""
        with self._lock:
            self._claimed.discard(instance)

    def sweep(self, known: Iterable[str]) -> list[str]:
        """End all instances but those `known` and claimed; their names, as `left` has them."""
        with self._lock:
            keep = {*self._claimed, *known}
        ended = []
        for instance in self.left(keep):
            self.end(instance, None, 0.0)
            ended.append(instance)
        return ended

    def left(self, known: Iterable[str]) -> Iterator[str]:
        """Names of instances of which processes run, without those `known`; `end` takes them.

        A long or unusual name is not the instance's own, but one made from it.
        """
        skip = {_short(instance) for instance in known}
        found = {place.name for one in psutil.process_iter() if (place := self._place(one))}
        yield from sorted(found - skip)

    def _members(self, instance: str, process: Process | None) -> list[psutil.Process]:
        """Every process of an instance that has not ended."""
        scratch, session = self.scratch(instance), self._session(instance, process)
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = self._place(one) == scratch or os.getsid(one.pid) == session
                if ours and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def _session(self, instance: str, process: Process | None) -> int | None:
        """The number of the session that is surely this instance's: its leader is known."""
        with self._lock:
            child = self._children.get(instance)
        if child is not None:
            return child.pid
        return process.pid if process is not None and holds_its_number(process) else None

    def _place(self, one: psutil.Process) -> Path | None:
        """The scratch directory of the instance that a process belongs to."""
        with contextlib.suppress(psutil.Error, OSError):
            if one.uids().real != os.getuid() or one.status() == psutil.STATUS_ZOMBIE:
                return None
            for text in (one.cwd().removesuffix(" (deleted)"), one.environ().get(MARK, "")):
                if (path := Path(text)).is_relative_to(self._scratch) and path != self._scratch:
                    return self._scratch / path.relative_to(self._scratch).parts[0]
        return None

    def _kill(self, instance: str, process: Process | None) -> None:
        """SIGKILL to every member, also to those that appear meanwhile.

        Python's resource trackers are spared for a moment: they end by themselves when the others
        have, and remove the shared memory that those left.
        """
        begun_s = time.monotonic()
        while left := self._members(instance, process):
            passed_s = time.monotonic() - begun_s
            if passed_s > KILLED_S:
                told = ", ".join(str(one.pid) for one in left)
                raise EngineError(f"{instance}: {told} still there {KILLED_S:g} s after SIGKILL")
            for one in left:
                with contextlib.suppress(psutil.Error):
                    if passed_s > TRACKER_S or _TRACKER not in " ".join(one.cmdline()):
                        one.kill()
            time.sleep(LOOK_S)


def _short(instance: str) -> str:
    """A name for a directory, of at most 40 letters; such a name stays as it is."""
    plain = re.sub(r"[^\w.#@~-]", "_", instance, flags=re.ASCII)
    if plain == instance and len(plain) <= 40:
        return plain
    return f"{plain[:29]}~{hashlib.sha256(instance.encode()).hexdigest()[:10]}"


def _root(owner: str) -> Path:
    """Where an owner's scratch directories are: a short path, always the same for one owner.

    Raises ConfigError if somebody else has put something there.
    """
    digest = hashlib.sha256(owner.encode()).hexdigest()[:10]
    place = Path(tempfile.gettempdir()).resolve() / f"modelium-{os.getuid()}-{digest}"
    with contextlib.suppress(FileNotFoundError):
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConfigError(f"{place} is somebody else's; set TMPDIR to a place of your own")
    return place
