"""Reshaping traces: every function takes a trace and returns a new one.

What a function makes up comes from a random stream of its own under the given seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError, did_you_mean
from modelium.traces.lengths import Lengths, draw_lengths
from modelium.traces.random_streams import stream
from modelium.traces.trace import LABEL_COLUMNS, MAX_REQUESTS, Labels, Trace

SHIFT_S = 60.0


def cut(trace: Trace, start_s: float, end_s: float) -> Trace:
    """Requests of start_s <= arrival < end_s; the new time 0 is `start_s`."""
    begin, end = np.searchsorted(trace.arrival_s, [start_s, end_s])
    if begin >= end:
        raise TraceError(
            f"{trace.source}: no request arrives between {start_s:g} s and {end_s:g} s; "
            f"the trace ends at {trace.span_s:g} s"
        )
    part = trace.take(np.arange(begin, end))
    return replace(part, arrival_s=part.arrival_s - start_s)


def speed_up(trace: Trace, factor: float) -> Trace:
    """The same requests `factor` times as fast: gaps of an hour become minutes."""
    if not (0 < factor < np.inf and trace.span_s / factor < np.inf):
        raise TraceError(f"speed is {factor:g}, expected a factor above 0 that leaves times finite")
    return replace(trace, arrival_s=trace.arrival_s / factor)


def scale_rate(trace: Trace, factor: float, seed: int = 0) -> Trace:
    """Change the load in the same time: thin it below 1, add shifted copies above.

    Below 1 each request stays with that probability. Above, copies of the whole trace are laid
    over it (the last one thinned), each moved by one random time of up to `SHIFT_S` (round the
    end): load over minutes and the bursts inside a copy stay as they were.
    """
    if not 0 < factor <= MAX_REQUESTS / len(trace):
        most = f"and at most {MAX_REQUESTS:,} requests"
        raise TraceError(f"rate is {factor:g}, expected a factor above 0 {most}")
    copies, rest = divmod(factor, 1.0)
    parts = [trace] * int(copies)
    if rest:
        keep = stream(seed, "thin").uniform(size=len(trace)) < rest
        parts += [trace.take(keep)] if keep.any() else []
    if not parts:
        raise TraceError(f"{trace.source}: no request is left at {factor:g} times the rate")
    rng = stream(seed, "shift copies")
    shifted = parts[:1] + [
        _shifted(part, float(rng.uniform(0, SHIFT_S)), trace) for part in parts[1:]
    ]
    return _concat(shifted, trace)


def _shifted(part: Trace, by_s: float, whole: Trace) -> Trace:
    return replace(part, arrival_s=(part.arrival_s + by_s) % max(whole.span_s, 1e-9))


def sample(trace: Trace, n: int, seed: int = 0) -> Trace:
    """Exactly `n` requests picked at random (which makes arrivals look more like Poisson)."""
    if not 0 < n <= len(trace):
        raise TraceError(f"cannot pick {n:,} of the {len(trace):,} requests of {trace.source}")
    rows = stream(seed, "sample").choice(len(trace), n, replace=False, shuffle=False)
    return trace.take(np.sort(rows))


def spread(trace: Trace, bucket_s: float, seed: int = 0) -> Trace:
    """Undo rounding: a request at a multiple of `bucket_s` moves to a random time in its bucket."""
    if not 0 < bucket_s < np.inf:
        raise TraceError(f"bucket is {bucket_s:g} s, expected more than 0, and an end")
    begin = np.floor(trace.arrival_s / bucket_s) * bucket_s
    within = stream(seed, "spread").uniform(0.0, bucket_s, len(trace))
    return replace(trace, arrival_s=begin + within).in_order()


def with_lengths(trace: Trace, lengths: Lengths, seed: int = 0) -> Trace:
    """Other prompt and output tokens, drawn for each model from its own stream."""
    prompt, output = draw_lengths(lengths, trace.model, seed)
    trace = replace(trace, prompt_tokens=prompt, output_tokens=output, prefix_tokens=None)
    return trace.noting(f"lengths are not the file's: {lengths}")


def merge(traces: Sequence[Trace]) -> Trace:
    """All requests of several traces on one clock.

    Equal models are one model; sessions and prefixes of different traces stay apart.
    """
    if not traces:
        raise TraceError("nothing to merge")
    if len(traces) == 1:
        return traces[0]
    apart = [
        trace.labelled(
            {
                name: Labels(column.codes, tuple(f"{i}:{value}" for value in column.names))
                for name in ("session", "prefix_id")
                if (column := getattr(trace, name)) is not None
            }
        )
        for i, trace in enumerate(traces)
    ]
    source = " + ".join(dict.fromkeys(trace.source for trace in traces))
    notes = tuple(note for trace in traces for note in trace.notes)
    return replace(_concat(apart, traces[0]), source=source, notes=notes)


def _concat(parts: Sequence[Trace], like: Trace) -> Trace:
    labels = {}
    for name in LABEL_COLUMNS:
        columns = [getattr(part, name) for part in parts]
        if any(column is not None for column in columns):
            missing = [Labels(np.full(len(part), -1, np.int32), ()) for part in parts]
            labels[name] = Labels.concat(c or m for c, m in zip(columns, missing, strict=True))
    shared = [part.prompt_tokens if (p := part.prefix_tokens) is None else p for part in parts]
    prefixed = any(part.prefix_tokens is not None for part in parts)
    whole = Trace(
        arrival_s=np.concatenate([part.arrival_s for part in parts]),
        model=Labels.concat(part.model for part in parts),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        prefix_tokens=np.concatenate(shared) if prefixed else None,
        source=like.source,
        notes=like.notes,
    )
    return whole.labelled(labels).in_order()


def map_models(
    trace: Trace, models: Sequence[str], how: str = "stripe", by: str = "model"
) -> Trace:
    """Let functions, clients or other names stand for `models`.

    "stripe" (AlpaServe's round robin): the i-th name to appear becomes model i modulo their
    number, which evens loads out. "popularity": names in falling order of requests are cut into
    as many equal blocks, the busiest for the first model, which keeps the skew. Requests without
    a name in column `by` are an error.
    """
    if by not in ("model", *LABEL_COLUMNS):
        raise TraceError(f"no column of names called {by!r}.{did_you_mean(by, LABEL_COLUMNS)}")
    column: Labels | None = getattr(trace, by)
    if column is None or np.any(column.codes < 0):
        raise TraceError(f"{trace.source}: not every request has a value in column {by}")
    if len(set(models)) < len(models) or not models:
        raise TraceError("the models to map onto must be different names, at least one")
    rank = _ranks(column, how)
    size = max(len(column.names), len(models))
    to = rank % len(models) if how == "stripe" else rank * len(models) // size
    mapped = Labels(to[column.codes].astype(np.int32), tuple(models)).take(np.arange(len(trace)))
    unused = len(models) - len(mapped.names)
    note = f"{unused} of the {len(models)} models got no requests" if unused else ""
    return replace(trace, model=mapped).noting(note)


def _ranks(column: Labels, how: str) -> NDArray[np.intp]:
    """The place of each name: by first appearance, or by falling number of requests."""
    if how == "stripe":
        _, first = np.unique(column.codes, return_index=True)
        order = np.argsort(first, kind="stable")
    elif how == "popularity":
        order = np.argsort(-column.counts(), kind="stable")
    else:
        hint = did_you_mean(how, ("stripe", "popularity"))
        raise TraceError(f"cannot map by {how!r}, expected stripe or popularity.{hint}")
    rank = np.empty(len(column.names), np.intp)
    rank[order] = np.arange(len(order))
    return rank
