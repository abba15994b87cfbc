"""Rates and idle times of models, counted in constant memory and computed when they are fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

BUCKET_S = 1.0
BUCKETS = 61
"""The last minute, and the second that has begun."""
QPS_WINDOW_S = 10.0
"""Over how long `modelium_model_qps` is a mean."""
QPM_WINDOW_S = 60.0


class Window:
    """Counts events by the second, for the last minute."""

    __slots__ = ("_counts", "_newest", "last_s")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._newest = 0
        """Number of the newest bucket since the clock's zero."""
        self.last_s = float("-inf")
        """When the last event came."""

    def add(self, now_s: float) -> None:
        """One event, now."""
        self._advance(now_s)
        self._counts[self._newest % BUCKETS] += 1
        self.last_s = now_s

    def rate_per_s(self, now_s: float, span_s: float) -> float:
        """Mean rate over the last `span_s` (at most a minute), or up to a second less of it."""
        self._advance(now_s)
        first = int((now_s - span_s) // BUCKET_S) + 1
        seen = sum(self._counts[n % BUCKETS] for n in range(first, self._newest + 1))
        return seen / max(now_s - first * BUCKET_S, BUCKET_S)

    def _advance(self, now_s: float) -> None:
        """Empty the buckets of the seconds that passed without an event."""
        newest = int(now_s // BUCKET_S)
        for number in range(max(self._newest, newest - BUCKETS) + 1, newest + 1):
            self._counts[number % BUCKETS] = 0
        self._newest = max(self._newest, newest)


class Lately(Collector):
    """The windows of all models, as a collector of Prometheus. Safe to call from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str], dict[str, Window]] = {}
        """By model and runtime, then by GPU."""

    def add(self, model: str, runtime: str, gpu: str) -> None:
        """A request has ended."""
        with self._lock:
            windows = self._windows.setdefault((model, runtime), {})
            window = windows.get(gpu)
            if window is None:
                window = windows[gpu] = Window()
            window.add(self._clock())

    def forget(self, model: str) -> None:
        """A model is served no more."""
        with self._lock:
            for key in [key for key in self._windows if key[0] == model]:
                del self._windows[key]

    def qps(self, model: str, runtime: str) -> float:
        """Requests per second, on all GPUs."""
        with self._lock:
            now_s, windows = self._clock(), self._windows.get((model, runtime), {})
            return sum(window.rate_per_s(now_s, QPS_WINDOW_S) for window in windows.values())

    def idle_s(self, model: str, runtime: str) -> float:
        """Seconds since the last request ended; `inf` if there was none."""
        with self._lock:
            windows = self._windows.get((model, runtime), {})
            last_s = max((window.last_s for window in windows.values()), default=float("-inf"))
            return self._clock() - last_s

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The families without series."""
        yield from _families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families as of now."""
        qps, qpm, idle = families = _families()
        with self._lock:
            now_s = self._clock()
            for (model, runtime), windows in self._windows.items():
                for gpu, window in windows.items():
                    labels = (model, runtime, gpu)
                    qps.add_metric(labels, window.rate_per_s(now_s, QPS_WINDOW_S))
                    qpm.add_metric(labels, 60 * window.rate_per_s(now_s, QPM_WINDOW_S))
                last_s = max(window.last_s for window in windows.values())
                idle.add_metric((model, runtime), now_s - last_s)
        yield from families


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    labels = ("model", "runtime", "gpu")
    return (
        GaugeMetricFamily("modelium_model_qps", "Requests per second, of 10 s", labels=labels),
        GaugeMetricFamily("modelium_model_qpm", "Requests per minute, of 60 s", labels=labels),
        GaugeMetricFamily(
            "modelium_model_idle_seconds", "Since the last request ended", labels=labels[:2]
        ),
    )
