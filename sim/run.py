"""`simulate`: a trace, a cluster and a policy in; the tables of a run out."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelium.core import Policy, drive, traits
from modelium.sim.inputs import SimInput
from modelium.traces import Trace

if TYPE_CHECKING:
    from modelium.results.record import Run


def simulate(
    given: SimInput,
    policy: Policy,
    trace: Trace,
    *,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
) -> Run:
    """Play `trace` on the simulated cluster under `policy`.

    `meta` goes into the summary: policy (its name), policy_parameters, command, ... Same input and
    seed, same tables, to the byte. Raises ConfigError for models that can never run here and
    TraceError for models of the trace that nobody described.
    """
    from modelium.sim.cluster import SimCluster
    from modelium.sim.data_plane import Plane
    from modelium.sim.results import collect

    begin_s = time.perf_counter()
    with _rare_collections():
        plane = Plane(given, trace)
        cluster = SimCluster(given, plane, seed)
        plane.check_fits(cluster.state)
        drive(cluster, policy)
        said = traits(policy)
        cluster.run(
            tick_s=said.every_s,
            end_s=trace.span_s + given.settings.drain_s,
            answers_misses=said.answers_misses,
        )
        about = {"policy": type(policy).__name__.lower(), "seed": seed, **(meta or {})}
        return collect(given, cluster, trace, about, begin_s)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """A run keeps most of what it makes: looking for garbage as often as usual costs 10 %."""
    usual, enabled = gc.get_threshold(), gc.isenabled()
    gc.freeze()  # nor is there any in what was there before
    gc.set_threshold(400_000, *usual[1:])
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
        if not enabled:
            gc.disable()
