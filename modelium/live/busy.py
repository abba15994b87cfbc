"""When each GPU had work: a request at one of its engines. The busy rows of `timeline.parquet`.

Where the driver measures utilisation that goes to the metrics; this is what the simulator calls
busy too, so that both worlds' reports compare.
"""

from __future__ import annotations

from collections.abc import Callable

from modelium.timeline import Row

BIN_S = 5.0


class Busy:
    """Seconds of work by GPU, in bins."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._working: dict[str, int] = {}
        self._since_s: dict[str, float] = {}
        self._bins: dict[tuple[str, int], float] = {}

    def begin(self, gpus: tuple[str, ...]) -> None:
        """A request was sent to an engine on these GPUs."""
        for gpu in gpus:
            self._working[gpu] = self._working.get(gpu, 0) + 1
            if self._working[gpu] == 1:
                self._since_s[gpu] = self._clock()

    def end(self, gpus: tuple[str, ...]) -> None:
        """A request is over."""
        for gpu in gpus:
            self._working[gpu] -= 1
            if not self._working[gpu]:
                self._add(gpu, self._since_s[gpu], self._clock())

    def rows(self, end_s: float) -> list[Row]:
        """The share of each bin in which each GPU had work."""
        for gpu, working in self._working.items():
            if working:
                self._add(gpu, self._since_s[gpu], end_s)
                self._since_s[gpu] = end_s
        rows: list[Row] = []
        for (gpu, number), seconds in sorted(self._bins.items()):
            start_s, stop_s = number * BIN_S, min((number + 1) * BIN_S, end_s)
            if stop_s > start_s:
                share = min(1.0, seconds / (stop_s - start_s))
                rows.append((gpu, start_s, stop_s, "busy", "", "", share))
        return rows

    def _add(self, gpu: str, start_s: float, end_s: float) -> None:
        number = int(start_s // BIN_S)
        while start_s < end_s:
            stop_s = min(end_s, (number + 1) * BIN_S)
            key = (gpu, number)
            self._bins[key] = self._bins.get(key, 0.0) + stop_s - start_s
            start_s, number = stop_s, number + 1
