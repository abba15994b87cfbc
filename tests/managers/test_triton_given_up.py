"""Starts that are given up at any moment, the first of their server: nothing is left of either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from modelium.managers.engine import StartError
from modelium.managers.triton.manager import TritonManager
from modelium.managers.triton.server import Gpu
from tests.managers.triton_house import double, manager, needs_triton, order
from tests.managers.vllm_house import processes_of

pytestmark = [pytest.mark.engines, needs_triton()]


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[TritonManager]:
    made = manager(tmp_path / "logs")
    yield made
    made.close()
    left = processes_of(tmp_path)
    for one in left:
        one.kill()
    assert left == []


@pytest.mark.parametrize("at", ["server", "files", "weights", "canary"])
def test_at_a_stage(at: str, ours: TritonManager, tmp_path: Path) -> None:
    cancelled = threading.Event()
    # The model hangs in loading, so that no stage is over before the start is seen given up.
    given = order("m#1", double(tmp_path / "double"), "hang" if at == "weights" else "")

    def told(stage: str, share: float) -> None:
        if stage == at:
            cancelled.set()

    with pytest.raises(StartError, match="the start was given up"):
        ours.start(replace(given, cancelled=cancelled), told)
    assert processes_of(tmp_path) == []


class _OnceThere(FileSystemEventHandler):
    """Sets an event when a file comes to be."""

    def __init__(self, name: str, event: threading.Event) -> None:
        self.name, self.event = name, event

    def on_created(self, event: FileSystemEvent) -> None:
        if Path(str(event.src_path)).name == self.name:
            self.event.set()


def test_while_the_server_starts(ours: TritonManager, tmp_path: Path) -> None:
    """Its process is there and does not listen yet."""
    cancelled = threading.Event()
    given = order("m#1", double(tmp_path / "double"))
    watching = Observer()
    watching.schedule(_OnceThere("triton-gpu0.json", cancelled), str(tmp_path / "logs"))
    watching.start()
    try:
        with pytest.raises(StartError, match="the start was given up"):
            ours.start(replace(given, cancelled=cancelled))
    finally:
        watching.stop()
        watching.join()
    assert processes_of(tmp_path) == []


def test_before_the_server_was_asked_for(ours: TritonManager, tmp_path: Path) -> None:
    """Somebody repairs it meanwhile: the start waits, is given up, and must not come back."""
    cancelled = threading.Event()
    given = order("m#1", double(tmp_path / "double"))
    with ThreadPoolExecutor() as pool, ours._own(Gpu(0)).lock:
        started = pool.submit(ours.start, replace(given, cancelled=cancelled))
        cancelled.set()
        with pytest.raises(TimeoutError):
            started.result(1.0)
    with pytest.raises(StartError, match="the start was given up"):
        started.result()
    assert processes_of(tmp_path) == []
