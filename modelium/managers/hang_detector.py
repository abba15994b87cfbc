"""Engines that are slow to answer: at work, or stuck."""

from __future__ import annotations

import time


class Stalls:
    """Since when each instance has made nothing. Its work is a counter that grows with it."""

    def __init__(self) -> None:
        self._still: dict[str, tuple[float, float]] = {}

    def still_s(self, instance: str, work: float) -> float:
        """Seconds for which the counter has stood, as far as it was looked at; 0 if it moved."""
        now_s = time.monotonic()
        since_s, before = self._still.setdefault(instance, (now_s, work))
        if work > before:
            self._still[instance] = (now_s, work)
            return 0.0
        return now_s - since_s

    def over(self, instance: str) -> None:
        """It has answered, or has ended."""
        self._still.pop(instance, None)
