"""What is in a trace: load, burstiness, popularity, idleness and lengths.

Definitions (`docs/traces.md` has them too). n models in falling order of requests:
top10 % is the share of requests of the round(n/10) most popular, at least one; bottom50 % that of
the ceil(n/2) least popular. `zipf` is the exponent s that makes the counts most likely under
P(rank r) in proportion to r**-s. `idle` is the mean over models of the share of time that a model
spends in gaps longer than so many seconds, start and end of the trace counted as gaps' ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.results.columns import percentiles
from modelium.traces.trace import Trace

IDLE_S = (10, 60, 600, 3600)
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Skew:
    """Shares of all requests, and the exponent of Zipf's law."""

    top1: float
    top10_percent: float
    top20_percent: float
    bottom50_percent: float
    zipf: float | None
    """None for a single model."""


@dataclass(frozen=True)
class Lengths:
    """Tokens."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int


@dataclass(frozen=True)
class Info:
    """Figures of one trace; times in seconds."""

    source: str
    requests: int
    models: int
    span_s: float
    rate_per_s: float | None
    """None if all requests come at once at time 0."""
    peak_per_minute: int
    cv: float | None
    """Of gaps between any two requests; None where there are none."""
    model_cv: float | None
    """Median over models of the CV of their own gaps."""
    skew: Skew
    idle: dict[int, float]
    """Seconds to share of time."""
    prompt_tokens: Lengths
    output_tokens: Lengths
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe(trace: Trace) -> Info:
    """Measure a trace."""
    own = per_model(trace)
    cvs = [value for arrivals in own if (value := cv(arrivals)) is not None]
    span = trace.span_s
    minutes = np.bincount((trace.arrival_s // 60).astype(np.int64))
    return Info(
        source=trace.source,
        requests=len(trace),
        models=len(trace.model.names),
        span_s=span,
        rate_per_s=len(trace) / span if span else None,
        peak_per_minute=int(minutes.max()),
        cv=cv(trace.arrival_s),
        model_cv=percentiles(np.array(cvs), (50,))[0] if cvs else None,
        skew=skew(trace.model.counts()),
        idle={limit: idle_share(own, span, limit) for limit in IDLE_S},
        prompt_tokens=_lengths(trace.prompt_tokens),
        output_tokens=_lengths(trace.output_tokens),
        notes=trace.notes,
    )


def per_model(trace: Trace) -> list[NDArray[np.float64]]:
    """The arrivals of each model, in the order of its names."""
    order = np.argsort(trace.model.codes, kind="stable")
    return np.split(trace.arrival_s[order], np.cumsum(trace.model.counts())[:-1])


def cv(arrival_s: NDArray[np.float64]) -> float | None:
    """Standard deviation over mean of the gaps; None for fewer than two gaps or no time."""
    gaps = np.diff(arrival_s)
    if len(gaps) < 2 or gaps.mean() == 0:
        return None
    return float(gaps.std() / gaps.mean())


def skew(counts: NDArray[np.int64]) -> Skew:
    """How unevenly requests fall on models."""
    share = np.sort(counts)[::-1] / counts.sum()
    n = len(share)
    return Skew(
        top1=float(share[0]),
        top10_percent=float(share[: max(1, round(0.1 * n))].sum()),
        top20_percent=float(share[: max(1, round(0.2 * n))].sum()),
        bottom50_percent=float(share[n // 2 :].sum()),
        zipf=zipf_mle(counts),
    )


def zipf_mle(counts: NDArray[np.int64]) -> float | None:
    """The most likely exponent of Zipf's law for these counts; None for a single model.

    There the law's mean of log(rank) equals the observed one; found by bisection in 0..20.
    """
    if len(counts) < 2:
        return None
    log_rank = np.log(np.arange(1, len(counts) + 1))
    observed = float(np.dot(np.sort(counts)[::-1], log_rank) / counts.sum())
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        weight = np.exp(-middle * log_rank)
        if np.dot(weight, log_rank) / weight.sum() > observed:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def idle_share(own: list[NDArray[np.float64]], span_s: float, limit_s: float) -> float:
    """Mean over models of the share of time in gaps longer than `limit_s`."""
    if not span_s:
        return 0.0
    gaps = [np.diff(arrivals, prepend=0.0, append=span_s) for arrivals in own]
    return float(np.mean([gap[gap > limit_s].sum() for gap in gaps]) / span_s)


def _lengths(tokens: NDArray[np.int32]) -> Lengths:
    p50, p90, p99 = percentiles(tokens.astype(np.float64), PERCENTILES)
    return Lengths(float(tokens.mean()), p50, p90, p99, int(tokens.max()))
