"""When each GPU had work: a request at one of its engines. The busy rows of `timeline.parquet`.

Each row is the share of one bin of time in which the GPU had work.

Where the driver measures utilisation that goes to the metrics; this is what the simulator calls
busy too, so that both worlds' reports compare.
"""

from __future__ import annotations

from collections.abc import Callable

from modelium.control.timeline import Row

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

    def take(self) -> list[Row]:
        """The bins that have ended since they were last taken; they are kept no longer."""
        number = int(self._clock() // BIN_S)
        for gpu in self._working_before(number * BIN_S):
            self._add(gpu, self._since_s[gpu], number * BIN_S)
            self._since_s[gpu] = number * BIN_S
        ended = sorted(key for key in self._bins if key[1] < number)
        return [_row(*key, self._bins.pop(key), (key[1] + 1) * BIN_S) for key in ended]

    def under_way(self) -> list[Row]:
        """The bin that has not ended, as far as it has come; take the others first."""
        now_s = self._clock()
        number = int(now_s // BIN_S)
        seconds = {gpu: seconds for (gpu, _), seconds in sorted(self._bins.items())}
        for gpu in self._working_before(now_s):
            seconds[gpu] = seconds.get(gpu, 0.0) + now_s - self._since_s[gpu]
        return [_row(gpu, number, seconds[gpu], now_s) for gpu in sorted(seconds)]

    def _working_before(self, at_s: float) -> list[str]:
        """GPUs that have had work since a moment before this one."""
        return [gpu for gpu, n in self._working.items() if n and self._since_s[gpu] < at_s]

    def _add(self, gpu: str, start_s: float, end_s: float) -> None:
        number = int(start_s // BIN_S)
        while start_s < end_s:
            stop_s = min(end_s, (number + 1) * BIN_S)
            key = (gpu, number)
            self._bins[key] = self._bins.get(key, 0.0) + stop_s - start_s
            start_s, number = stop_s, number + 1


def _row(gpu: str, number: int, seconds: float, end_s: float) -> Row:
    start_s = number * BIN_S
    return gpu, start_s, end_s, "busy", "", "", min(1.0, seconds / (end_s - start_s))
