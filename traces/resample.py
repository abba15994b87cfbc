"""Window-wise Gamma re-sampling: new arrivals with each window's rate and burstiness.

AlpaServe (Li et al., OSDI 2023, section 6.2) makes its workloads this way from Azure's functions:
for each model and window, rate and CV are measured, scaled, and a Gamma process with them is
drawn. A policy is then planned on one slice of the trace and measured on another.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.arrivals import Floats, gamma
from modelium.traces.random_streams import stream
from modelium.traces.trace import MAX_REQUESTS, Trace
from modelium.traces.transform import cut

CV_LIMITS = (0.05, 20.0)
MIN_GAPS = 3
"""With fewer gaps in a window, its CV is taken to be 1."""


def split(trace: Trace, at_s: float) -> tuple[Trace, Trace]:
    """The train slice before `at_s` and the test slice from there on, each from its own time 0."""
    return cut(trace, 0.0, at_s), cut(trace, at_s, np.nextafter(trace.span_s, np.inf))


def resample(
    trace: Trace,
    window_s: float,
    *,
    rate: float = 1.0,
    cv: float = 1.0,
    seed: int = 0,
    part: str = "",
) -> Trace:
    """Redraw all arrivals: per model and window a Gamma process with `rate` times the window's
    rate and `cv` times its CV.

    A new request takes all its other columns from one of the same model and window, picked at
    random. Name the `part` ("train", "test") of slices, so that they do not share random numbers;
    since each is redrawn from its own requests only, nothing of one leaks into the other.
    """
    if not all(0 < value < np.inf for value in (window_s, rate, cv)):
        given = f"window {window_s:g} s, rate {rate:g} and cv {cv:g}"
        raise TraceError(f"{given}: all must be above 0 and finite")
    if rate * len(trace) > MAX_REQUESTS:
        raise TraceError(f"rate {rate:g} makes more than {MAX_REQUESTS:,} requests: lower it")
    rows, times = [np.empty(0, np.intp)], [np.empty(0)]
    by_model = np.argsort(trace.model.codes, kind="stable")
    of_model = np.split(by_model, np.cumsum(trace.model.counts())[:-1])
    for name, mine in zip(trace.model.names, of_model, strict=True):
        arrivals = stream(seed, "resample", part, name)
        picks = stream(seed, "pick", part, name)
        window = (trace.arrival_s[mine] // window_s).astype(np.int64)
        for w, group in zip(*_groups(window, mine), strict=True):
            wanted = rate * len(group) / window_s, _scaled_cv(trace.arrival_s[group], cv)
            new = w * window_s + gamma(*wanted, window_s, arrivals)
            times.append(new)
            rows.append(picks.choice(group, len(new)))
    made = np.concatenate(times)
    if not len(made):
        raise TraceError(f"{trace.source}: no request is left after re-sampling")
    order = np.argsort(made, kind="stable")
    redrawn = replace(trace.take(np.concatenate(rows)[order]), arrival_s=made[order])
    return redrawn.noting(f"arrivals are redrawn per window of {window_s:g} s (seed {seed})")


def _groups(
    window: NDArray[np.int64], rows: NDArray[np.intp]
) -> tuple[list[int], list[NDArray[np.intp]]]:
    """The windows that occur in this increasing column, and the rows of each."""
    numbers, first = np.unique(window, return_index=True)
    return numbers.tolist(), np.split(rows, first[1:])


def _scaled_cv(arrival_s: Floats, factor: float) -> float:
    gaps = np.diff(arrival_s)
    own = float(gaps.std() / gaps.mean()) if len(gaps) >= MIN_GAPS and gaps.mean() > 0 else 1.0
    return float(np.clip(own * factor, *CV_LIMITS))
