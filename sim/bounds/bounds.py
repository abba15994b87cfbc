"""Upper bounds on SLO attainment that hold for every policy on a trace and a cluster.

Derivation and limits: docs/bounds.md. Nothing is simulated: lower bounds on times, and a linear
relaxation of who can be in memory when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

from modelium.core import Model, Slo
from modelium.sim.bounds.fastest import fastest, load_s, return_s
from modelium.sim.inputs import SimInput
from modelium.sim.spec import Faults, Generate
from modelium.traces import Trace

Floats = NDArray[np.float64]
Advanced = Callable[[float], object]

CHUNK = 800
"""Requests of one linear programme; what ties chunks is dropped, which can only raise a bound."""
SLACK_S = 1e-6
"""Times are rounded to picoseconds; no bound may hang on that."""


class _Least(NamedTuple):
    """By request, the best that any policy could do."""

    patience_s: Floats
    """How long it can wait for a copy and still be in time; negative: it never is."""
    service_s: Floats
    """How long it keeps the copy that serves it."""


class _Needs(NamedTuple):
    """When a copy of a model must hold its memory for a request that meets its SLO."""

    begin_s: Floats
    end_s: Floats
    model: NDArray[np.int64]
    share: Floats
    """[measure, model] Share of the cluster that a copy takes: by bytes, and by what fits beside
    it on a GPU. What is in memory at one time adds up to one at most, in each measure."""


def bounds(
    given: SimInput, trace: Trace, advanced: Advanced = lambda share: None
) -> dict[str, float | None]:
    """Return the bounds of `summary.json`: shares of all arrivals, and requests a second.

    `slo_attainment` and `goodput_per_s` hold for every policy; they combine `alone` (each request
    by itself on an idle cluster, its model ready) with who must be in memory at the same time.
    `without_sleep` is the same for policies that load and unload but put nothing to sleep.
    `advanced` hears now and then which share of the work was done since it heard last.
    """
    n = len(trace)
    if n == 0:
        return {}
    least = _least(given, trace)
    possible = int(np.count_nonzero(least.patience_s >= 0))
    best, awake = (
        possible - _lost(_needs(given, trace, least, way), advanced) for way in (return_s, load_s)
    )
    return {
        "slo_attainment": best / n,
        "goodput_per_s": best / trace.span_s if trace.span_s > 0 else None,
        "alone": possible / n,
        "without_sleep": min(best, awake) / n,
    }


def _least(given: SimInput, trace: Trace) -> _Least:
    """From the fastest engine on any kind of GPU that is here."""
    patience_s, service_s = np.empty(len(trace)), np.empty(len(trace))
    whole = given.settings.faults == Faults()  # else another copy may finish what one began
    for model, rows in _by_model(given, trace):
        first_s, token_s = _fastest(given, model, trace, rows)
        gaps = np.maximum(trace.output_tokens[rows] - 1.0, 0.0)
        ttft, tpot, e2e = _limits(given, trace, model, rows)
        left = np.minimum(ttft, e2e - gaps * token_s) - first_s + SLACK_S
        too_slow = (gaps > 0) & (token_s > tpot + SLACK_S)
        patience_s[rows] = np.where(too_slow, -np.inf, left)
        service_s[rows] = first_s + gaps * token_s * whole - SLACK_S
    return _Least(patience_s, service_s)


def _by_model(given: SimInput, trace: Trace) -> Iterator[tuple[Model, NDArray[np.intp]]]:
    """Each model of the trace with its requests."""
    models = {model.name: model for model in given.models}
    for code, name in enumerate(trace.model.names):
        yield models[name], np.flatnonzero(trace.model.codes == code)


def _fastest(
    given: SimInput, model: Model, trace: Trace, rows: NDArray[np.intp]
) -> tuple[Floats, float]:
    prompt = trace.prompt_tokens[rows].astype(float)
    cached = trace.prefix_id is not None and bool((trace.prefix_id.codes[rows] >= 0).any())
    kinds = sorted({gpu.kind for gpu in given.gpus})
    found = [fastest(given.engines(model, kind), prompt, cached) for kind in kinds]
    return np.minimum.reduce([first for first, _ in found]), min(token for _, token in found)


def _limits(given: SimInput, trace: Trace, model: Model, rows: NDArray[np.intp]) -> Floats:
    """TTFT, TPOT and E2E limits of these requests."""
    classes = given.slo_classes
    slos: list[Slo] = list(classes.values()) or [model.slo]
    which = np.zeros(len(rows), np.intp)
    if classes and trace.slo_class is not None:
        order = list(classes)
        table = np.array([*(order.index(name) for name in trace.slo_class.names), 0])
        which = table[trace.slo_class.codes[rows]]
    return np.array([(s.ttft_s, s.tpot_s, s.e2e_s) for s in slos]).T[:, which]


def _needs(
    given: SimInput, trace: Trace, least: _Least, back_s: Callable[[SimInput, Model], float]
) -> _Needs:
    """Whenever a request is taken up, its copy was held so long before, and is so long after."""
    begin_s = trace.arrival_s + least.patience_s
    end_s = trace.arrival_s + least.service_s
    shares = []
    for model, rows in _by_model(given, trace):
        begin_s[rows] -= back_s(given, model) - SLACK_S
        shares.append(_shares(given, model, _held_bytes(given, model, trace, rows)))
    begin_s = np.maximum(begin_s, 0.0)
    kept = (least.patience_s >= 0) & (begin_s + SLACK_S < end_s)
    model_of = trace.model.codes[kept].astype(np.int64)
    return _Needs(begin_s[kept], end_s[kept], model_of, np.array(shares).T)


def _held_bytes(given: SimInput, model: Model, trace: Trace, rows: NDArray[np.intp]) -> int:
    """What a copy holds per GPU with the smallest KV pool that any of these requests fits in."""
    kv = 0
    if isinstance(given.engines(model, given.gpus[0].kind), Generate) and len(rows):
        tokens = trace.prompt_tokens[rows] + np.maximum(trace.output_tokens[rows], 1) - 1
        kv = min(model.kv_bytes, int(tokens.min()) * model.kv_bytes_per_token)
    return model.bytes_per_gpu(kv)


def _shares(given: SimInput, model: Model, held_bytes: int) -> list[float]:
    """By bytes, then by dual feasible functions: f(sizes in one GPU) never adds up to over one."""
    memory = [gpu.memory_bytes for gpu in given.gpus]
    size, of_all = held_bytes / max(memory), model.gpus / len(memory)
    parts = [_large_or_small(size, at) for at in (0.1, 0.2, 0.3, 0.4, 0.5)]
    parts += [_counted(size, k) for k in (2, 3, 4)]
    return [model.gpus * held_bytes / sum(memory), *(of_all * part for part in parts)]


def _large_or_small(size: float, at: float) -> float:
    """Beside more than 1 - at, only less than `at` fits, which counts nothing (at <= 1/2)."""
    if size > 1 - at + 1e-9:
        return 1.0
    return size if size >= at else 0.0


def _counted(size: float, k: int) -> float:
    """Of items over 1/(k+1), at most k fit (Fekete and Schepers, Math. Prog. 91, 2001)."""
    pieces = (k + 1) * size
    return size if abs(pieces - round(pieces)) < 1e-9 else math.floor(pieces) / k


def _lost(needs: _Needs, advanced: Advanced = lambda share: None) -> int:
    """How many of them must miss, at least."""
    total, order = 0, np.argsort(needs.end_s, kind="stable")
    for at in range(0, len(order), CHUNK):
        part = order[at : at + CHUNK]
        total += _lost_of(
            _Needs(needs.begin_s[part], needs.end_s[part], needs.model[part], needs.share)
        )
        advanced(len(part) / len(order) / 2)  # there are two such sums
    return total


def _lost_of(needs: _Needs) -> int:
    """The linear programme: the least sum of misses so that nothing is ever held twice.

    Variables: how much each request misses; how much each model is held while a given set of its
    requests wants it. Misses are whole, so the optimum may be rounded up.
    """
    n, rows = len(needs.end_s), _Rows([], [], [], [])
    columns: dict[tuple[int, ...], int] = {}
    for crowd in _crowds(needs):
        weights = needs.share[:, needs.model[[wanting[0] for wanting in crowd]]]
        held = [columns.setdefault(wanting, n + len(columns)) for wanting in crowd]
        for weight in weights[weights.sum(axis=1) > 1 + 1e-9].tolist():
            rows.add(held, weight, 1.0)
    if not columns:
        return 0
    for wanting, column in columns.items():
        for request in wanting:  # held >= 1 - missed
            rows.add([column, request], [-1.0, -1.0], -1.0)
    size = n + len(columns)
    found = linprog(
        np.arange(size) < n,
        A_ub=csr_array((rows.value, (rows.row, rows.column)), shape=(len(rows.limit), size)),
        b_ub=rows.limit,
        bounds=(0, 1),
        method="highs",
    )
    return max(0, math.ceil(found.fun - 1e-4)) if found.status == 0 else 0


class _Rows(NamedTuple):
    """The rows of a linear programme, sparse."""

    row: list[int]
    column: list[int]
    value: list[float]
    limit: list[float]

    def add(self, columns: Sequence[int], values: Sequence[float], limit: float) -> None:
        """The sum of these is at most `limit`."""
        self.row.extend([len(self.limit)] * len(columns))
        self.column.extend(columns)
        self.value.extend(values)
        self.limit.append(limit)


def _crowds(needs: _Needs) -> list[tuple[tuple[int, ...], ...]]:
    """Whenever more is wanted than fits: the requests that want it, model by model.

    What is wanted grows until an interval ends, so the moments before ends are enough.
    """
    crowds = {}
    for time in np.unique(needs.end_s).tolist():
        wanting = np.flatnonzero((needs.begin_s < time) & (needs.end_s >= time))
        models = np.unique(needs.model[wanting])
        if (needs.share[:, models].sum(axis=1) > 1 + 1e-9).any():
            crowds[tuple(wanting)] = tuple(
                tuple(wanting[needs.model[wanting] == m].tolist()) for m in models
            )
    return list(crowds.values())
