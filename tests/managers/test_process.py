"""Processes of engines: started, told apart, and ended whatever they do to stay."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from modelium.errors import ConfigError
from modelium.managers.engine import StartError
from modelium.managers.identity import Process, holds_its_number, identify, runs
from modelium.managers.ports import Ports
from modelium.managers.process import Processes, tail

TELL = """
import os, signal, subprocess, sys, time
def tell(*said):
    with open({fifo!r}, "w") as file:
        print(*said, file=file)
def child(**how):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **how).pid
"""
WITHIN_S = 300.0
"""Whatever a test waits for has come by then, on the slowest machine."""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Whatever a test leaves is ended after it, and must be."""
    made = Processes(tmp_path / "logs", "test")
    yield made
    for instance in made.left([]):
        made.end(instance, None, 0.0)
    assert list(made.left([])) == []
    assert not made.scratch("x").parent.exists()


@pytest.fixture
def start(tmp_path: Path, processes: Processes) -> Callable[..., tuple[Process, list[int]]]:
    """Run a script as instance "m#1" until it tells something; return that as numbers."""

    def begin(script: str, instance: str = "m#1") -> tuple[Process, list[int]]:
        fifo = tmp_path / f"fifo{len(list(tmp_path.iterdir()))}"
        os.mkfifo(fifo)
        text = TELL.format(fifo=str(fifo)) + script + "\ntime.sleep(600)"
        process = processes.spawn(instance, [sys.executable, "-c", text], dict(os.environ))
        return process, [int(word) for word in fifo.read_text().split()]

    return begin


def alive(*pids: int) -> list[int]:
    """Those that have not ended."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_an_engine_has_a_session_a_log_and_a_place_of_its_own(
    processes: Processes, start: Callable[..., tuple[Process, list[int]]]
) -> None:
    process, _ = start("print('hello', flush=True); tell(0)")
    assert os.getsid(process.pid) == process.pid
    assert tail(processes.log("m#1")) == "hello"
    scratch = processes.scratch("m#1")
    assert psutil.Process(process.pid).cwd() == str(scratch)
    assert psutil.Process(process.pid).environ()["TMPDIR"] == str(scratch)
    assert scratch.stat().st_mode & 0o077 == 0
    assert len(str(scratch)) < 70, "room for the names of sockets"
    processes.end("m#1", process, WITHIN_S)
    assert not runs(process)
    assert not scratch.exists()


def test_who_obeys_is_given_the_time_to(
    processes: Processes, start: Callable[..., tuple[Process, list[int]]], tmp_path: Path
) -> None:
    told = tmp_path / "last words"
    process, _ = start(
        f"def bye(*_):\n    open({str(told)!r}, 'w').write('bye'); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, bye); tell(0)"
    )
    processes.end("m#1", process, WITHIN_S)
    assert told.read_text() == "bye"


def test_who_does_not_obey_is_killed_with_its_children(
    processes: Processes, start: Callable[..., tuple[Process, list[int]]]
) -> None:
    process, children = start(STUBBORN + "tell(child(), child())")
    processes.end("m#1", process, 0.2)
    assert alive(process.pid, *children) == []


@pytest.mark.parametrize(
    "how",
    [
        "start_new_session=True, env={}",
        "start_new_session=True, cwd='/'",
        "env={}, cwd='/'",
    ],
    ids=["known by its directory", "known by its mark", "known by its session"],
)
def test_no_child_escapes(
    processes: Processes, start: Callable[..., tuple[Process, list[int]]], how: str
) -> None:
    process, children = start(f"tell(child({how}))")
    processes.end("m#1", process, 5.0)
    assert alive(process.pid, *children) == []


def test_another_self_finds_what_a_killed_parent_left_and_nobody_elses(
    processes: Processes,
    start: Callable[..., tuple[Process, list[int]]],
    tmp_path: Path,
) -> None:
    odd = "organization/" + "long" * 20 + "#2"
    process, orphans = start("tell(child())")
    other, _ = start("tell(0)", odd)
    os.kill(process.pid, signal.SIGKILL)
    assert processes.wait("m#1", WITHIN_S) == -signal.SIGKILL
    assert alive(*orphans) == orphans

    stranger = Processes(tmp_path / "other logs", "test")
    assert list(stranger.left([])) == []
    assert list(Processes(tmp_path / "logs", "another runtime").left([])) == []
    later = Processes(tmp_path / "logs", "test")
    made_from_odd = processes.scratch(odd).name
    assert list(later.left([])) == ["m#1", made_from_odd]
    assert list(later.left([odd])) == ["m#1"]
    later.end("m#1", process, 1.0)
    assert alive(*orphans) == []
    assert runs(other)
    later.end(made_from_odd, None, 0.0)
    assert not runs(other)
    processes.end(odd, other, 0.0)
    processes.end("m#1", process, 0.0)


def test_shared_memory_does_not_outlive_a_kill(
    processes: Processes, start: Callable[..., tuple[Process, list[int]]]
) -> None:
    process, (name,) = start(
        "from multiprocessing.shared_memory import SharedMemory\n"
        "block = SharedMemory(create=True, size=4096, name=f'modelium_{os.getpid()}')\n"
        "tell(os.getpid())"
    )
    block = Path(f"/dev/shm/modelium_{name}")
    assert block.exists()
    processes.end("m#1", process, 0.0)
    assert not block.exists()


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    mine = identify(os.getpid())
    assert runs(mine)
    assert not runs(replace(mine, start_ticks=mine.start_ticks - 1))
    assert not runs(replace(mine, boot_id="another"))
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ended = identify(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert not runs(ended), "a zombie has ended"
        assert holds_its_number(ended)
    assert not holds_its_number(ended)


def test_an_old_number_of_somebody_elses_is_left_alone(processes: Processes) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        try:
            found = identify(bystander.pid)
            processes.end("m#1", replace(found, start_ticks=found.start_ticks - 1), 1.0)
            assert runs(found)
        finally:
            bystander.kill()


def test_a_place_that_is_not_ours_is_refused(processes: Processes, tmp_path: Path) -> None:
    place = processes.scratch("x").parent
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is somebody else's"):
        Processes(tmp_path / "logs", "test")
    place.unlink()


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000 + b"\nhalf\rwhole\n\xff end\n")
    assert tail(log, 2) == "whole\n\N{REPLACEMENT CHARACTER} end"
    assert len(tail(log)) < 70_000
    assert tail(tmp_path / "none") == ""


def test_a_port_that_somebody_has_is_not_given_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert Ports("127.0.0.1", taken).take() > taken
        elsewhere = Ports("127.0.0.1", 65535)
        elsewhere.hold(65535)
        with pytest.raises(StartError, match="no port from 65535"):
            elsewhere.take()


def test_threads_never_get_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ports, "_free", lambda self, port: True)  # whoever else runs here
    ports, at_once = Ports("127.0.0.1", 20_000), threading.Barrier(16)

    def take(_: int) -> int:
        at_once.wait()
        return ports.take()

    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(take, range(16)))
    assert len(set(given)) == 16
    ports.give(min(given))
    assert ports.take() == min(given)
