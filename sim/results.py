"""From the arrays of a finished run to its tables and figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from modelium import __version__
from modelium.control.timeline import busy_columns
from modelium.errors import ModeliumError
from modelium.results.record import (
    COLD,
    OUTCOMES,
    Column,
    Run,
    decisions_table,
    requests_table,
    timeline_table,
)
from modelium.results.summary import summarize
from modelium.sim.kernel.arrays import World
from modelium.sim.kernel.infer import add_busy
from modelium.traces import Trace
from modelium.units import PS_PER_S

if TYPE_CHECKING:
    from modelium.sim.cluster import SimCluster
    from modelium.sim.inputs import SimInput

_PACKAGES = ("simpy", "numpy", "numba", "pyarrow")


def collect(
    given: SimInput, cluster: SimCluster, trace: Trace, meta: Mapping[str, Any], begin_s: float
) -> Run:
    """Tables and figures of the run that `cluster` has just ended."""
    w = cluster.plane.w
    check_conservation(w)
    end_s = cluster.state.now_s
    span_s = max(trace.span_s, end_s)
    requests = requests_table(_columns(given, cluster, trace))
    decisions = decisions_table(cluster.decisions)
    timeline = timeline_table(cluster.lifecycle.timeline.rows, *_by_bin(cluster, span_s))
    figures = summarize(
        requests,
        decisions,
        timeline,
        span_s=trace.span_s or end_s,
        gpus=given.gpus,
        meta={
            "trace": trace.source,
            "assumptions": [*trace.notes, *given.notes],
            "wall_s": time.perf_counter() - begin_s,
            "decide_s": cluster.channel.decide_s,
            "versions": _versions(),
            **meta,
        },
        slos=None if given.slo_classes else {model.name: model.slo for model in given.models},
    )
    return Run(figures, requests, decisions, timeline)


def check_conservation(w: World) -> None:
    """Arrived = completed + rejected + failed + unfinished, each found where it must be.

    Raises ModeliumError if a request vanished or was counted twice: a fault of the simulator.
    """
    unfinished = len(w.outcome) - int(np.count_nonzero(w.outcome))  # UNFINISHED is 0
    held = int(w.n_waiting.sum() + w.outstanding.sum()) + len(w.outcome) - int(w.arrivals.sum())
    if unfinished != held:
        raise ModeliumError(f"{unfinished} requests are unfinished, but {held} are held somewhere")


def _columns(given: SimInput, cluster: SimCluster, trace: Trace) -> dict[str, Column]:
    w = cluster.plane.w
    told = cluster.plane.answers()
    columns: dict[str, Column] = {
        "arrival_s": w.arrival_s,
        "model": (w.requests.model, [model.name for model in given.models]),
        "prompt_tokens": w.requests.prompt,
        "output_tokens": w.requests.output,
        "outcome": (told.outcome, OUTCOMES),
        "instance": (told.instance, cluster.instance_ids),
        "first_token_s": told.first_s,
        "finish_s": told.finish_s,
        "cold": (told.cold, COLD),
        "preemptions": w.requests.preemptions,
        "cached_tokens": told.cached,
        "retries": w.retries,
        "slo_met": told.met,
    }
    for name in ("slo_class", "organization"):
        if (labels := getattr(trace, name)) is not None:
            columns[name] = (labels.codes, labels.names)
    return columns


def _by_bin(cluster: SimCluster, span_s: float) -> Iterator[dict[str, Column]]:
    w, now_s = cluster.plane.w, cluster.state.now_s
    for g in np.flatnonzero(w.busy_engines):
        add_busy(w.busy, g, w.busy_since_ps[g] / PS_PER_S, now_s, 1.0)
    cluster.kv_use.end_bin()
    gpus = list(cluster.state.all_gpus)
    yield busy_columns(w.busy.seconds, float(w.busy.width_s[0]), gpus, span_s)
    yield cluster.kv_use.columns()


@cache
def _versions() -> dict[str, str]:
    return {"modelium": __version__} | {name: metadata.version(name) for name in _PACKAGES}
