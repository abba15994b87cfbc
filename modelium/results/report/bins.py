"""From the tables of a run to what its pictures show: everything dense is binned here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelium.results.record import Codes, Floats, Run, floats, labels
from modelium.results.summary import latencies
from modelium.units import GIB

Json = dict[str, Any]

STATES = ("ready", "loading", "asleep")
_STATE_OF = {
    "weights": 0, "kv": 0, "overhead": 0, "loading": 1, "leaving": 1, "asleep": 2,
}  # fmt: skip
_HELD = {"weights": 0, "loading": 1, "leaving": 1, "asleep": 2}
NAMED = 8
"""Models with a colour of their own; all others share one."""
_CDF_POINTS = 380
_TTFT_BINS = 160
_COLD_MARKS = 2000
_ARRIVAL_BINS = 200
_GRAINS = 1500
"""Gaps shorter than this part of the whole are closed."""


def end_s(run: Run) -> float:
    """When the last thing happened that a picture shows."""
    ends = [run.summary["span_s"]]
    for table, column in ((run.timeline, "end_s"), (run.requests, "finish_s")):
        values = floats(table, column)
        ends += [float(np.nanmax(values))] if not np.isnan(values).all() else []
    return max(ends) or 1.0


def largest_models(runs: Sequence[Run]) -> list[str]:
    """The models that held most byte-seconds over all runs, largest first."""
    area: dict[str, float] = {}
    for run in runs:
        codes, names = labels(run.timeline, "model")
        held = _states(run, _STATE_OF) >= 0
        seconds = floats(run.timeline, "end_s") - floats(run.timeline, "start_s")
        byte_seconds = (floats(run.timeline, "value") * seconds)[held]
        sums = np.bincount(codes[held], byte_seconds, minlength=len(names))
        for name, value in zip(names, sums.tolist(), strict=True):
            area[name] = area.get(name, 0.0) + value
    held_most = sorted((name for name in area if area[name]), key=lambda name: -area[name])
    return held_most[:NAMED]


def gpus(run: Run, named: Sequence[str], columns: int) -> list[Json]:
    """For each GPU: GiB by model and state in steps over time, and its busy share."""
    place, gpu_names = labels(run.timeline, "gpu")
    kinds, kind_names = labels(run.timeline, "kind")
    busy = kinds == (kind_names.index("busy") if "busy" in kind_names else -2)
    state, colour = _states(run, _STATE_OF), _colours(run, named)
    spans = _Intervals(
        floats(run.timeline, "start_s"),
        floats(run.timeline, "end_s"),
        floats(run.timeline, "value"),
    )
    until, figures = end_s(run), []
    for gpu in run.summary["gpus"]:
        here = place == (gpu_names.index(gpu["id"]) if gpu["id"] in gpu_names else -2)
        mine = spans.only(here & (state >= 0))
        edges = _edges(mine, until, columns)
        steps = np.linspace(0.0, until, columns + 1)
        figures.append(
            {
                "id": gpu["id"],
                "kind": gpu["kind"],
                "gib": gpu["memory_bytes"] / GIB,
                "edges": _times(edges, until),
                "bands": _bands(mine, (colour * 3 + state)[here & (state >= 0)], edges),
                "busy": _short(spans.only(here & busy).mean(steps), 3),
            }
        )
    return figures


def cdf(seconds: Floats, arrived: int) -> Json:
    """Points of the share of all arrivals that took at most x seconds; dense in the tail."""
    known = np.sort(seconds[~np.isnan(seconds)])
    n = len(known)
    tail = 1.0 - np.logspace(-0.3, -6, _CDF_POINTS // 2)
    share = np.concatenate([np.linspace(0.0, 1.0, _CDF_POINTS // 2), tail])
    at = np.unique((share * (n - 1)).round().astype(int)) if n else np.array([], int)
    return {"x": _significant(known[at]), "p": _short((at + 1) / max(arrived, 1), 6)}


def felt(run: Run) -> Json:
    """Latencies: CDFs, TTFT over time by percentiles per bin, and cold starts."""
    seconds, arrived = latencies(run.requests), run.requests.num_rows
    return {
        "ttft": cdf(seconds.ttft_s, arrived),
        "e2e": cdf(seconds.e2e_s, arrived),
        "over_time": _over_time(run, seconds.ttft_s),
        "cold": _cold_marks(run, seconds.ttft_s),
    }


def residency(run: Run, named: Sequence[str], rows: int) -> Json:
    """Who was where when: intervals by state, waiting and arrivals for the models that matter."""
    models, names = labels(run.requests, "model")
    holders, holder_names = labels(run.timeline, "model")
    state, until = _states(run, _HELD), end_s(run)
    start, end = floats(run.timeline, "start_s"), floats(run.timeline, "end_s")
    arrival = floats(run.requests, "arrival_s")
    since, till = arrival, _waits_until(run, until)
    waits = ~np.isnan(till)
    counts = dict(zip(names, np.bincount(models, minlength=len(names)).tolist(), strict=True))
    order = sorted({*counts, *holder_names} - {""}, key=lambda m: (-counts.get(m, 0), m))
    figures = []
    for name in order[:rows]:
        code = names.index(name) if name in names else -2
        held = holders == (holder_names.index(name) if name in holder_names else -2)
        mine, hungry = models == code, (models == code) & waits
        in_state = [held & (state == s) for s in range(len(STATES))]
        bars = [_union(start[these], end[these], until) for these in in_state]
        bins = np.histogram(arrival[mine], _ARRIVAL_BINS, (0.0, until))[0]
        figures.append(
            {
                "model": name,
                "colour": named.index(name) if name in named else NAMED,
                "bars": bars,
                "waits": _union(since[hungry], till[hungry], until),
                "arrivals": bins.tolist(),
            }
        )
    return {"rows": figures, "left_out": max(0, len(order) - rows)}


def log(run: Run, rows: int) -> Json:
    """The decision log; where it is too long, all failures and an even sample of the rest."""
    table = run.decisions
    if table.num_rows > rows:
        failed = table["error"].to_numpy(zero_copy_only=False) != ""
        kept, others = np.flatnonzero(failed)[: rows // 2], np.flatnonzero(~failed)
        even = np.linspace(0, len(others) - 1, min(rows - len(kept), len(others)))
        table = table.take(np.union1d(kept, others[even.astype(int)]))
    columns = ("at_s", "end_s", "kind", "model", "gpus", "tier", "error", "reason")
    at, end, *texts = (table[name].to_pylist() for name in columns)
    took = [None if b != b else round(b - a, 3) for a, b in zip(at, end, strict=True)]
    lines = zip([round(a, 3) for a in at], took, *texts, strict=True)
    return {"rows": [list(line) for line in lines], "of": run.decisions.num_rows}


class _Intervals:
    """Values held over half-open intervals."""

    def __init__(self, start: Floats, end: Floats, value: Floats) -> None:
        self.start, self.end, self.value = start, end, value

    def only(self, which: Codes) -> _Intervals:
        return _Intervals(self.start[which], self.end[which], self.value[which])

    def mean(self, edges: Floats) -> Floats:
        """Mean of the sum of values in each bin: exact, as its integral is piecewise linear."""
        times = np.concatenate([self.start, self.end])
        steps = np.concatenate([self.value, -self.value])
        order = np.argsort(times, kind="stable")
        times, level = times[order], np.cumsum(steps[order])
        if not len(times):
            return np.zeros(len(edges) - 1)
        integral = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(times))])
        areas: Floats = np.diff(np.interp(edges, times, integral))
        return areas / np.diff(edges)


def _states(run: Run, table: Mapping[str, int]) -> Codes:
    kinds, names = labels(run.timeline, "kind")
    return np.array([table.get(name, -1) for name in names] + [-1])[kinds]


def _colours(run: Run, named: Sequence[str]) -> Codes:
    codes, names = labels(run.timeline, "model")
    known = {name: i for i, name in enumerate(named)}
    return np.array([known.get(name, NAMED) for name in names] + [NAMED])[codes]


def _edges(spans: _Intervals, until: float, columns: int) -> Floats:
    """Every moment of change where those are few, else equal bins."""
    changes = np.unique(np.concatenate([[0.0, until], spans.start, spans.end]))
    return changes if len(changes) <= columns + 1 else np.linspace(0.0, until, columns + 1)


def _bands(spans: _Intervals, keys: Codes, edges: Floats) -> list[Json]:
    """One band for each colour and state that occurs, in order of stacking."""
    bands = []
    for key in np.unique(keys).tolist():
        gib = _short(spans.only(keys == key).mean(edges) / GIB, 2)
        bands.append({"colour": key // 3, "state": key % 3, "gib": gib})
    return bands


def _over_time(run: Run, ttft_s: Floats) -> Json:
    arrival = floats(run.requests, "arrival_s")
    edges = np.linspace(0.0, end_s(run), _TTFT_BINS + 1)
    groups = np.split(ttft_s, np.searchsorted(arrival, edges[1:-1]))
    known = [group[~np.isnan(group)] for group in groups]
    rows = [np.percentile(g, (50, 99)) if len(g) else (np.nan, np.nan) for g in known]
    p50, p99 = np.array(rows).T
    return {"p50": _significant(p50), "p99": _significant(p99)}


def _cold_marks(run: Run, ttft_s: Floats) -> Json:
    codes, names = labels(run.requests, "cold")
    waited = np.array([name != "" for name in names] + [False])[codes]
    marks = np.flatnonzero(waited & ~np.isnan(ttft_s))
    shown = marks[:: max(1, -(-len(marks) // _COLD_MARKS))]
    at = _times(floats(run.requests, "arrival_s")[shown], end_s(run))
    return {"at": at, "ttft": _significant(ttft_s[shown]), "of": len(marks)}


def _waits_until(run: Run, until: float) -> Floats:
    """When each request stopped waiting for an instance; NaN if it never waited for one."""
    codes, names = labels(run.requests, "cold")
    cold = np.array([name != "" for name in names] + [False])[codes]
    served = floats(run.requests, "first_token_s")
    outcomes, outcome_names = labels(run.requests, "outcome")
    code = outcome_names.index("unfinished") if "unfinished" in outcome_names else -2
    stuck = (outcomes == code) & np.isnan(served)
    return np.where(stuck, until, np.where(cold, served, np.nan))


def _union(start: Floats, end: Floats, until: float) -> list[float]:
    """Merge intervals that overlap or nearly touch: start, end, start, end, ..."""
    if not len(start):
        return []
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    first = np.concatenate([[True], start[1:] > reach[:-1] + until / _GRAINS])
    last = np.concatenate([first[1:], [True]])
    return _times(np.column_stack([start[first], reach[last]]).ravel(), until)


def _times(seconds: Floats, until: float) -> list[Any]:
    """To about a millionth of the whole."""
    return _short(seconds, 5 - math.floor(math.log10(until)))


def _short(values: Floats, decimals: int) -> list[Any]:
    """As JSON numbers with few digits; whole ones without a point."""
    return [int(v) if v == int(v) else v for v in np.round(values, decimals).tolist()]


def _significant(values: Floats) -> list[Any]:
    """Three significant digits; NaN becomes null."""
    return [None if v != v else float(f"{v:.3g}") for v in values.tolist()]
