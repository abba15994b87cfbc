"""`simulate`: a trace, a cluster and a policy in; the tables of a run out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelium.core import Gpu, Model, Node, Policy, Slo, drive
from modelium.costs import ConfiguredFacts, Work
from modelium.sim.spec import Engine, Settings
from modelium.traces import Trace

if TYPE_CHECKING:
    from modelium.record import Run


@dataclass(frozen=True)
class SimInput:
    """What is simulated, but for the trace and the policy."""

    nodes: list[Node]
    gpus: list[Gpu]
    models: list[Model]
    engines: Callable[[Model, str], Engine]
    """The engine of a model on a kind of GPU."""
    work: Work
    facts: ConfiguredFacts = field(default_factory=ConfiguredFacts)
    settings: Settings = Settings()
    slo_classes: Mapping[str, Slo] = field(default_factory=dict)
    """SLOs of the trace's classes, in place of the model's own; first named, first served."""
    notes: tuple[str, ...] = ()
    """What had to be assumed; said in every report."""


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
    from modelium.sim.plane import Plane
    from modelium.sim.results import collect

    begin_s = time.perf_counter()
    with _rare_collections():
        plane = Plane(given, trace)
        cluster = SimCluster(given, plane, seed)
        plane.check_fits(cluster.state)
        drive(cluster, policy)
        cluster.run(
            tick_s=getattr(policy, "every_s", None),
            end_s=trace.span_s + given.settings.drain_s,
            answers_misses=getattr(policy, "answers_misses", True),
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
