"""What every start of an engine has to look at while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from modelium.managers.engine import Order, Progress, StartError

LOOK_S = 0.2
"""How often a start looks whether it was given up."""

T = TypeVar("T")


@dataclass
class Start:
    """One start under way: its deadline, its stages, and whether anybody still wants it."""

    order: Order
    progress: Progress | None = None
    until_s: float = 0.0
    """On the monotonic clock."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    _stage: str = ""
    _share: float = 0.0
    _since_s: float = 0.0

    def __post_init__(self) -> None:
        self._since_s = time.monotonic()
        self.until_s = self._since_s + self.order.deadline_s

    @property
    def left_s(self) -> float:
        """Seconds to go, at least a moment."""
        return max(0.1, self.until_s - time.monotonic())

    def begin(self, stage: str, share: float = 0.0) -> None:
        """Another stage begins, or the same has come this far; "" ends the last one."""
        if (stage, share) == (self._stage, self._share):
            return
        now_s = time.monotonic()
        if stage != self._stage:
            if self._stage:
                took_s = now_s - self._since_s
                self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took_s
            self._since_s = now_s
        self._stage, self._share = stage, share
        if stage and self.progress is not None:
            self.progress(stage, share)

    def go_on(self) -> None:
        """Raises StartError if the start was given up or took too long."""
        if self.order.cancelled.is_set():
            raise StartError(f"{self.order.model}: the start was given up")
        if time.monotonic() > self.until_s:
            raise StartError(f"{self.order.model}: not ready after {self.order.deadline_s:g} s")

    def watch(self, work: Callable[[], T]) -> T:
        """Do something that blocks, in a thread; leave it there when the start is given up."""
        made: list[T] = []
        raised: list[Exception] = []

        def run() -> None:
            try:
                made.append(work())
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self.go_on()
            thread.join(LOOK_S)
        if raised:
            raise raised[0]
        return made[0]
