"""Arrival processes: Poisson, Gamma and Weibull renewals, and how load swings over time.

A process runs at rate 1 on a clock of its own; `Intensity.when` bends that clock so that it
ticks fast where the load is high. The mean is then exact whatever the swing, and the short-term
variability (CV) stays that of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Gaps = Callable[[int], Floats]


def poisson(rate_per_s: float, span_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times of a Poisson process in [0, span)."""
    n = rng.poisson(rate_per_s * span_s)
    return np.sort(rng.uniform(0.0, span_s, n))


def gamma(rate_per_s: float, cv: float, span_s: float, rng: np.random.Generator) -> Floats:
    """Arrival times in [0, span) of a stationary renewal process with Gamma gaps.

    `cv` is the standard deviation of the gaps over their mean; 1 is Poisson. The first gap is
    what is left of a gap under way at time 0, so that the expected number is exactly rate*span.
    """
    shape = 1.0 / cv**2
    scale = 1.0 / (rate_per_s * shape) if rate_per_s > 0 else math.inf
    first = rng.uniform() * rng.gamma(shape + 1.0, scale)  # a gap picked by a point is longer
    return renewal(rate_per_s, span_s, first, lambda n: rng.gamma(shape, scale, n))


def weibull(rate_per_s: float, cv: float, span_s: float, rng: np.random.Generator) -> Floats:
    """The same with Weibull gaps."""
    shape = weibull_shape(cv)
    power = 1.0 / shape
    scale = 1.0 / (rate_per_s * math.gamma(1.0 + power)) if rate_per_s > 0 else math.inf
    first = rng.uniform() * scale * rng.gamma(1.0 + power) ** power
    return renewal(rate_per_s, span_s, first, lambda n: scale * rng.weibull(shape, n))


@lru_cache(maxsize=100_000)
def weibull_shape(cv: float) -> float:
    """Shape of the Weibull law whose standard deviation over mean is `cv` (by bisection)."""
    low, high = math.log(0.02), math.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        power = math.exp(-middle)
        # log(1 + cv^2) falls as the shape grows
        logged = math.lgamma(1.0 + 2.0 * power) - 2.0 * math.lgamma(1.0 + power)
        if logged > math.log1p(cv**2):
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def renewal(rate_per_s: float, span_s: float, first_s: float, gaps: Gaps) -> Floats:
    """Arrival times in [0, span): the first at `first_s`, then after independent `gaps`."""
    if rate_per_s <= 0 or first_s >= span_s:
        return np.empty(0)
    parts, last = [np.array([first_s])], first_s
    while last < span_s:
        expected = rate_per_s * (span_s - last)
        part = last + np.cumsum(gaps(int(expected + 4 * math.sqrt(expected)) + 16))
        parts.append(part)
        last = float(part[-1])
    times = np.concatenate(parts)
    return times[times < span_s]


@dataclass(frozen=True)
class Intensity:
    """Load over time, as a multiple of its mean: `level[i]` between `edge_s[i]` and the next."""

    edge_s: Floats
    level: Floats

    @classmethod
    def flat(cls, span_s: float) -> Intensity:
        """Always 1."""
        return cls(np.array([0.0, span_s]), np.array([1.0]))

    @classmethod
    def day_curve(cls, span_s: float, swing: float, peak_h: float = 15.0) -> Intensity:
        """A sine of 24 hours in steps of 5 minutes: 1+swing at `peak_h` o'clock, 1-swing at night.

        Each step holds the mean of the sine over it.
        """
        edges = np.append(np.arange(0.0, span_s, 300.0), span_s)
        turn = 2 * math.pi / 86400.0
        area = np.sin(turn * (edges - 3600.0 * peak_h)) / turn
        return cls(edges, 1.0 + swing * np.diff(area) / np.diff(edges))

    @classmethod
    def on_off(
        cls, span_s: float, on_s: float, off_s: float, quiet: float, rng: np.random.Generator
    ) -> Intensity:
        """Bursts: exponential on and off times with these means, starting in their steady state.

        Off, the load is `quiet` (0 to 1); on, so much that the long-run mean is 1.
        """
        on = rng.uniform() < on_s / (on_s + off_s)
        edges, levels = [0.0], []
        loud = 1.0 + (1.0 - quiet) * off_s / on_s
        while edges[-1] < span_s:
            edges.append(edges[-1] + rng.exponential(on_s if on else off_s))
            levels.append(loud if on else quiet)
            on = not on
        edges[-1] = span_s
        return cls(np.array(edges), np.array(levels))

    def times(self, other: Intensity) -> Intensity:
        """The product of two loads over the same span."""
        edges = np.union1d(self.edge_s, other.edge_s)
        return Intensity(edges, self._at(edges[:-1]) * other._at(edges[:-1]))

    def blend(self, other: Intensity, share: float) -> Intensity:
        """`share` of this load and the rest of the other."""
        edges = np.union1d(self.edge_s, other.edge_s)
        level = share * self._at(edges[:-1]) + (1.0 - share) * other._at(edges[:-1])
        return Intensity(edges, level)

    def _at(self, times_s: Floats) -> Floats:
        return self.level[np.searchsorted(self.edge_s, times_s, side="right") - 1]

    @property
    def area_s(self) -> float:
        """Integral over the span: how long the process's own clock runs."""
        return float(np.dot(self.level, np.diff(self.edge_s)))

    def when(self, own_clock_s: Floats) -> Floats:
        """Real times at which the process's own clock shows these (increasing) times."""
        loud = self.level > 0
        width = np.diff(self.edge_s)[loud]
        run = np.concatenate([[0.0], np.cumsum(self.level[loud] * width)])
        i = np.clip(np.searchsorted(run, own_clock_s, side="right") - 1, 0, len(width) - 1)
        times: Floats = self.edge_s[:-1][loud][i] + (own_clock_s - run[i]) / self.level[loud][i]
        return times
