"""An event loop whose time passes at once, for tests of what happens when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Handle:
    """A call that is to come."""

    def __init__(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.call, self.args, self.cancelled = call, args, False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """As much of an event loop as engines use."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Handle]] = []
        self._order = count()

    def clock(self) -> float:
        return self.now_s

    def call_soon(self, call: Callable[..., None], *args: Any) -> Handle:
        return self.call_later(0.0, call, *args)

    def call_later(self, wait_s: float, call: Callable[..., None], *args: Any) -> Handle:
        return self.call_at(self.now_s + wait_s, call, *args)

    def call_at(self, at_s: float, call: Callable[..., None], *args: Any) -> Handle:
        handle = Handle(call, args)
        heapq.heappush(self._heap, (at_s, next(self._order), handle))
        return handle

    def run(self) -> None:
        """Until nothing is to come."""
        while self._heap:
            at_s, _, handle = heapq.heappop(self._heap)
            self.now_s = max(self.now_s, at_s)
            if not handle.cancelled:
                handle.call(*handle.args)
