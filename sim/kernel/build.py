"""Builds the arrays of a compiled world from a trace and the description of a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.core import Slo
from modelium.errors import ConfigError, TraceError, did_you_mean
from modelium.results.columns import blocks, columns, owned
from modelium.sim.inputs import SimInput
from modelium.sim.kernel import generate
from modelium.sim.kernel.arrays import ROUTERS, Sizes, World, make_lanes
from modelium.sim.kernel.heap import make_heap
from modelium.sim.kernel.infer import Busy
from modelium.sim.spec import Engine, Infer
from modelium.traces import Trace

MOST_SLOTS = 4096
"""Instances at a time; far beyond what the memory of a few hundred GPUs holds."""

LONGEST_S = 9.0e6
"""What the engines' clocks can count."""

Specs = Mapping[tuple[str, str], Engine]


def make_world(given: SimInput, trace: Trace, models: Mapping[str, int], specs: Specs) -> World:
    """All arrays, before the first arrival."""
    _check_span(given, trace)
    n = _sizes(given, trace, specs)
    i64, i32, f64 = np.int64, np.int32, np.float64
    width_s, option = _bin_s(given, trace), _options(given)
    engines = generate.make_engines(n.slots, list(specs.values()), _prefixes(trace))
    requests = _requests(trace, models)
    return World(
        at=np.zeros(6, i64),
        option=option,
        rate_window_s=np.array([given.settings.rate_window_s]),
        heap=make_heap(2 * n.slots),
        engines=engines,
        lanes=make_lanes(n),
        busy=Busy(np.zeros((n.gpus, n.bins), f64), np.array([width_s])),
        requests=requests,
        done=np.zeros(n.requests + 1, i64),
        **_by_request(given, trace, requests),
        ready=np.zeros((n.models, n.copies), i32),
        n_ready=np.zeros(n.models, i64),
        coming=np.zeros(n.models, i64),
        hungry=np.zeros(n.models, np.bool_),
        first_waiting=np.zeros(n.models, i32),
        last_waiting=np.zeros(n.models, i32),
        n_waiting=np.zeros(n.models, i64),
        arrivals=np.zeros(n.models, i64),
        last_arrival_ps=np.zeros(n.models, i64),
        rate=np.zeros(n.models, f64),
        prompt_sum=np.zeros(n.models, i64),
        output_sum=np.zeros(n.models, i64),
        turn=np.zeros(n.models, i64),
        slo=_slos(given),
        kind=np.zeros(n.slots, i64),
        number=np.zeros(n.slots, i64),
        outstanding=np.zeros(n.slots, i64),
        capacity=np.zeros(n.slots, i64),
        served=np.zeros(n.slots, i64),
        last_used_ps=np.zeros(n.slots, i64),
        idle_since_ps=np.zeros(n.slots, i64),
        hear=np.zeros(n.slots, np.bool_),
        interference=np.zeros(n.slots, f64),
        slot_gpus=np.zeros((n.slots, n.gpus_per_slot), i64),
        n_slot_gpus=np.zeros(n.slots, i64),
        lane_load=np.zeros(n.slots, i64),
        busy_units=np.zeros(n.gpus, i64),
        busy_engines=np.zeros(n.gpus, i64),
        busy_since_ps=np.zeros(n.gpus, i64),
        on=np.zeros((n.gpus, n.slots), i64),
        n_on=np.zeros(n.gpus, i64),
    )


def _by_request(
    given: SimInput, trace: Trace, requests: generate.Requests
) -> dict[str, NDArray[Any]]:
    """The columns by request that are not the engines' own."""
    n, i8, i32, i64, f64 = len(trace), np.int8, np.int32, np.int64, np.float64
    own = columns(
        n,
        arrival_ps=(i64, 0),
        slo_class=(i64, _classes(given, trace)),
        outcome=(i8, 0),
        cold=(i8, 0),
        retries=(i32, 0),
        instance=(i32, -1),
        slot_of=(i32, 0),  # written before it is read
        answer_s=(f64, np.nan),
    )
    arrival_s = owned(trace.arrival_s, f64)
    for rows in blocks(n):
        own["arrival_ps"][rows] = np.rint(arrival_s[rows] * 1e12)
    return own | {
        "arrival_s": arrival_s,
        "session": owned([] if trace.session is None else trace.session.codes, i32),
        "first_s": requests.first_ps.view(f64),
        "finish_s": requests.finish_ps.view(f64),
        "met": requests.place.view(np.bool_),
    }


def _check_span(given: SimInput, trace: Trace) -> None:
    """Picoseconds in 64 bits last 106 days."""
    if trace.span_s + given.settings.drain_s > LONGEST_S:
        raise TraceError(
            f"{trace.source or 'trace'}: lasts {trace.span_s:,.0f} s; the simulator's clock ends "
            f"at {LONGEST_S:,.0f} s, draining included. Cut it, or speed it up "
            "(modelium trace transform)"
        )


def _sizes(given: SimInput, trace: Trace, specs: Specs) -> Sizes:
    infer = [spec for spec in specs.values() if isinstance(spec, Infer)]
    slots = _slots(given)
    bins = math.ceil((trace.span_s + given.settings.drain_s) / _bin_s(given, trace))
    return Sizes(
        requests=len(trace),
        models=len(given.models),
        classes=max(1, len(given.slo_classes)),
        slots=slots,
        copies=min(slots, 256),
        gpus=len(given.gpus),
        gpus_per_slot=max((model.gpus for model in given.models), default=1),
        stages=max((len(spec.latency_s) for spec in infer), default=1),
        servers=max((spec.servers for spec in infer), default=1),
        batch=max((len(row) for spec in infer for row in spec.latency_s), default=1),
        members=slots if infer else 1,
        bins=bins + 1,
    )


def _bin_s(given: SimInput, trace: Trace) -> float:
    """Width of the timeline's bins; as fine as those of a minute at most."""
    return max(trace.span_s, 60.0) / given.settings.bins


def _slots(given: SimInput) -> int:
    """Instances that memory can hold, those that leave and those that sleep counted on top."""
    full = min((m.bytes_per_gpu() for m in given.models), default=1)
    asleep = min((m.asleep_bytes for m in given.models), default=0)
    most = 64 * len(given.gpus)
    if full > 0:
        most = sum(2 * gpu.memory_bytes // full + 1 for gpu in given.gpus)
    sleeping = 2 * len(given.models) * len(given.nodes)
    if asleep > 0:
        sleeping = min(sleeping, sum(gpu.memory_bytes // asleep for gpu in given.gpus))
    return max(4, min(MOST_SLOTS, most + sleeping))


def _prefixes(trace: Trace) -> int:
    return 0 if trace.prefix_id is None else int(np.count_nonzero(trace.prefix_id.codes >= 0))


def _options(given: SimInput) -> NDArray[np.int64]:
    admission, router = given.settings.admission, given.settings.router
    if router not in ROUTERS:
        hint = did_you_mean(router, ROUTERS) or f" Known: {', '.join(ROUTERS)}."
        raise ConfigError(f"no router called {router!r}.{hint}")
    if admission.absent not in ("wait", "reject"):
        raise ConfigError(f"admission.absent is {admission.absent!r}, expected wait or reject")
    reject = admission.absent == "reject"
    return np.array(
        [ROUTERS.index(router), admission.queue_limit, reject, admission.deadline], np.int64
    )


def _requests(trace: Trace, models: Mapping[str, int]) -> generate.Requests:
    known = np.array([models.get(name, -1) for name in trace.model.names] + [-1], np.int32)
    model = trace.model.codes
    if not np.array_equal(known[:-1], np.arange(len(known) - 1)):  # else these are the codes
        model = known[model]
    if len(model) and model.min() < 0:
        row = int(np.argmin(model))
        name = trace.model.names[trace.model.codes[row]]
        raise TraceError(
            f"{trace.source or 'trace'}, row {row + 1:,}: nothing is known of model {name!r}."
            f"{did_you_mean(name, models)}"
        )
    asked = trace.prompt_tokens, trace.output_tokens, model
    if trace.prefix_id is None:
        return generate.make_requests(*asked)
    shared = trace.prompt_tokens if trace.prefix_tokens is None else trace.prefix_tokens
    return generate.make_requests(*asked, trace.prefix_id.codes, shared)


def _classes(given: SimInput, trace: Trace) -> int | NDArray[np.int64]:
    """Class of each request: its place among the classes that have SLOs of their own."""
    if trace.slo_class is None or not given.slo_classes:
        return 0
    order = list(given.slo_classes)
    unknown = [name for name in trace.slo_class.names if name not in order]
    if unknown:
        hint = did_you_mean(unknown[0], order) or f" Known: {', '.join(order)}."
        raise ConfigError(f"the trace has SLO class {unknown[0]!r}, which nobody described.{hint}")
    table = np.array([order.index(name) for name in trace.slo_class.names] + [0], np.int64)
    return table[trace.slo_class.codes]


def _slos(given: SimInput) -> NDArray[np.float64]:
    classes = list(given.slo_classes.values())
    rows = [classes or [model.slo] for model in given.models]
    limits = [[_limits(slo) for slo in row] for row in rows]
    return np.array(limits, np.float64).reshape(len(given.models), max(1, len(classes)), 3)


def _limits(slo: Slo) -> tuple[float, float, float]:
    return slo.ttft_s, slo.tpot_s, slo.e2e_s
