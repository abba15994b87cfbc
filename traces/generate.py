"""Traces made from a law: who is popular, when load swings, how bursty arrivals are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.arrivals import Floats, Intensity, gamma, poisson
from modelium.traces.lengths import Lengths, Lognormal
from modelium.traces.random_streams import stream
from modelium.traces.trace import MAX_REQUESTS, Labels, Trace


@dataclass(frozen=True)
class Bursts:
    """On/off swings of load; models of one group swing together.

    On and off times are exponential with these means. While off, load is `quiet` of its mean;
    while on, so much that the long-run mean is kept. `groups` 0 gives every model swings of its
    own; otherwise models are dealt to that many groups at random and `together` says which share
    of a model's swing is the group's (1: all of it; the rest is its own).
    """

    on_s: float = 300.0
    off_s: float = 1200.0
    quiet: float = 0.1
    groups: int = 0
    together: float = 1.0


@dataclass(frozen=True)
class Workload:
    """What to generate. Rates are requests per second over all models, on long-run average."""

    models: tuple[str, ...]
    """From the most popular to the least (unless shuffled)."""
    rate_per_s: float
    span_s: float
    zipf: float = 1.0
    """Popularity of rank r is proportional to r**-zipf; 0: all alike."""
    shuffle: bool = False
    """Deal the ranks to the models at random."""
    cv: float = 1.0
    """Of the gaps between a model's arrivals: 1 is Poisson, more is burstier (Gamma)."""
    day_swing: float = 0.0
    """0 to 1: load is 1+swing times its mean at the peak and 1-swing twelve hours later."""
    day_peak_h: float = 15.0
    bursts: Bursts | None = None
    lengths: Lengths = field(default_factory=Lognormal)
    time_digits: int = 6
    """Arrivals are rounded to so many digits after the point; fewer make smaller files."""


def zipf_shares(n: int, exponent: float) -> NDArray[np.float64]:
    """Shares of ranks 1..n in proportion to rank**-exponent; they sum to 1."""
    weight = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    shares: NDArray[np.float64] = weight / weight.sum()
    return shares


def generate(workload: Workload, seed: int = 0) -> Trace:
    """Make the trace of a workload: same workload and seed, same trace.

    Each model and each purpose has a random stream of its own: other lengths leave the arrivals
    as they are, another rate leaves the bursts where they are. Raises TraceError for a wrong
    parameter, or if no request falls into the span.
    """
    _check(workload)
    shares = zipf_shares(len(workload.models), workload.zipf)
    if workload.shuffle:
        shares = shares[stream(seed, "popularity").permutation(len(shares))]
    groups = _deal_groups(workload, seed)
    times = [
        _arrivals(workload, name, workload.rate_per_s * float(share), group, seed)
        for name, share, group in zip(workload.models, shares, groups, strict=True)
    ]
    lengths = [
        workload.lengths.draw(len(t), seed, name)
        for name, t in zip(workload.models, times, strict=True)
    ]
    arrival_s = np.concatenate(times).round(workload.time_digits)
    if not len(arrival_s):
        raise TraceError(
            f"no request falls into {workload.span_s:g} s at {workload.rate_per_s:g} requests/s: "
            "raise the rate or the duration"
        )
    codes = np.repeat(np.arange(len(times), dtype=np.int32), [len(t) for t in times])
    trace = Trace(
        arrival_s,
        Labels(codes, workload.models),
        np.concatenate([prompt for prompt, _ in lengths]),
        np.concatenate([output for _, output in lengths]),
        source="generated",
    )
    return trace.take(np.argsort(arrival_s, kind="stable"))


def _arrivals(workload: Workload, model: str, rate: float, group: int | None, seed: int) -> Floats:
    rng = stream(seed, "arrivals", model)
    load = _load(workload, model, group, seed)
    if workload.cv == 1.0:
        own_clock = poisson(rate, load.area_s, rng)
    else:
        own_clock = gamma(rate, workload.cv, load.area_s, rng)
    return load.when(own_clock) if len(own_clock) else own_clock


def _load(workload: Workload, model: str, group: int | None, seed: int) -> Intensity:
    load = Intensity.flat(workload.span_s)
    if workload.day_swing:
        load = Intensity.day_curve(workload.span_s, workload.day_swing, workload.day_peak_h)
    if (bursts := workload.bursts) is None:
        return load
    shape = (workload.span_s, bursts.on_s, bursts.off_s, bursts.quiet)
    own = Intensity.on_off(*shape, stream(seed, "bursts", model))
    if group is None:
        return load.times(own)
    shared = Intensity.on_off(*shape, stream(seed, "bursts of group", str(group)))
    return load.times(shared.blend(own, bursts.together))


def _deal_groups(workload: Workload, seed: int) -> Sequence[int | None]:
    n = len(workload.models)
    if workload.bursts is None or not workload.bursts.groups:
        return [None] * n
    return [int(g) for g in stream(seed, "groups").permutation(n) % workload.bursts.groups]


def _check(workload: Workload) -> None:
    if not workload.models:
        raise TraceError("a workload needs at least one model")
    if len(set(workload.models)) < len(workload.models):
        twice = next(m for m in workload.models if workload.models.count(m) > 1)
        raise TraceError(f"model {twice!r} is named twice")
    limits = [
        ("rate_per_s", workload.rate_per_s, 0.0, np.inf),
        ("span_s", workload.span_s, 1e-3, np.inf),
        ("zipf", workload.zipf, 0.0, 100.0),
        ("cv", workload.cv, 0.01, 100.0),
        ("day_swing", workload.day_swing, 0.0, 1.0),
        ("day_peak_h", workload.day_peak_h, 0.0, 24.0),
        ("time_digits", workload.time_digits, 0, 12),
    ]
    if workload.bursts is not None:
        limits += [
            ("on_s", workload.bursts.on_s, 1e-3, np.inf),
            ("off_s", workload.bursts.off_s, 1e-3, np.inf),
            ("quiet", workload.bursts.quiet, 0.0, 1.0),
            ("together", workload.bursts.together, 0.0, 1.0),
            ("groups", workload.bursts.groups, 0, np.inf),
        ]
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise TraceError(f"{name} is {value:g}, expected {low:g} to {high:g}")
    if (expected := workload.rate_per_s * workload.span_s) > MAX_REQUESTS:
        raise TraceError(f"{expected:,.0f} requests are more than {MAX_REQUESTS:,}: lower the rate")
