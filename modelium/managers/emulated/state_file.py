"""What the process of an emulated engine tells of its start, over a pipe."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Iterator
from typing import Any

from modelium.managers.engine import Order, Progress, StartError

LOOK_S = 0.2
"""How often a start looks whether it was cancelled."""


class EndedError(Exception):
    """The process ended before it was ready."""


class Notes:
    """The reading end of the pipe; use as a context manager."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        """The process inherits `writing`."""
        self.seconds: dict[str, float] = {}
        """By stage of the start."""
        self._begun_s = time.monotonic()
        self._stage = ""

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._reading)
        self.started()

    def started(self) -> None:
        """The process has its end of the pipe: ours is closed, so that its death is seen."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def follow(self, order: Order, until_s: float, progress: Progress | None) -> int:
        """Hear the process's progress until it listens; return its port.

        Raises StartError if it fails, is given up or takes too long, EndedError if it ends.
        """
        for note in self._read():
            if order.cancelled.is_set():
                raise StartError(f"{order.model}: the start was given up")
            if time.monotonic() > until_s:
                raise StartError(f"{order.model}: not ready after {order.deadline_s:g} s")
            if "failed" in note:
                raise StartError(note["failed"], out_of_memory=note["out_of_memory"])
            if "stage" in note:
                self._hear(note["stage"])
                if progress is not None:
                    progress(note["stage"], note["share"])
            if "port" in note:
                self._hear("")
                return int(note["port"])
        raise EndedError

    def _hear(self, stage: str) -> None:
        if stage == self._stage:
            return
        now_s = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = now_s - self._begun_s
            self._begun_s = now_s
        self._stage = stage

    def _read(self) -> Iterator[dict[str, Any]]:
        """Each line that comes, and an empty note now and then; ends when nobody writes."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            while True:
                yield {}
                if selector.select(LOOK_S):
                    if not (data := os.read(self._reading, 65536)):
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    yield from map(json.loads, lines)
