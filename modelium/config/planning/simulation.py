"""The section `simulation`: how the simulated cluster behaves, whatever the policy."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Literal

from modelium.config.values import Count, Factor, Number, Seconds, Section, Share, build

if TYPE_CHECKING:
    from modelium.sim import spec

Router = Literal["least_outstanding", "round_robin", "shortest_queue", "session_affinity"]


class Admission(Section):
    """Which requests are rejected on arrival."""

    queue_limit: Number | None = None
    """Maximum queue length, per instance; for a model with none ready, in total."""
    deadline: bool | None = None
    """Reject when the predicted finish misses the request's SLO."""
    absent: Literal["wait", "reject"] | None = None
    """What happens to a request whose model has no ready instance."""
    max_wait: Seconds | None = None
    """A request that waited this long for an instance is rejected."""


class FaultAt(Section):
    """One fault."""

    at: Seconds
    kind: Literal["gpu_lost", "node_lost", "crash", "load_fails", "load_slow"]
    target: str = ""
    """A GPU, a node, an instance or a model."""
    for_: Seconds | None = None
    """Time until it is repaired; never, if not set."""
    factor: Factor | None = None
    """For load_slow: how many times longer."""


class Faults(Section):
    """Faults, by schedule and by rate."""

    schedule: list[FaultAt] = field(default_factory=list)
    gpu_mtbf: Seconds | None = None
    """Mean time between the losses of one GPU."""
    gpu_repair: Seconds | None = None
    crash_mtbf: Seconds | None = None
    """Mean time between the crashes of one instance."""
    load_failure: Share | None = None
    """Probability that a load fails."""
    slow_load: Share | None = None
    """Probability that a load is slow."""
    slow_factor: Factor | None = None
    retries: Number | None = None
    """How often a request on a lost instance is sent again before it fails."""


class Limits(Section):
    """Operator's limits, whatever the policy."""

    loads_at_once: Count | None = None
    """Concurrent loads and wakes in the whole cluster."""
    loads_at_once_per_gpu: Count | None = None
    min_residency: Seconds | None = None
    """An instance stays at least this long after it became ready."""


class Simulation(Section):
    """How the simulated cluster behaves."""

    router: Router | None = None
    """How a request is routed among its model's ready instances."""
    admission: Admission = Admission()
    faults: Faults = Faults()
    limits: Limits = Limits()
    rate_window: Seconds | None = None
    """Time constant of the demand rates that policies see."""
    drain: Seconds | None = None
    """How long after the last arrival requests may still finish."""
    charge_decide: bool | None = None
    """Delay actions by the time the policy took to decide."""
    prepared: bool | None = None
    """Models loaded by the policy at time 0 are ready immediately."""
    host_cache: bool | None = None
    """Loads leave a copy of the weights in host RAM while there is room."""
    bins: Count | None = None
    """Resolution of busy shares in the timeline."""

    def settings(self) -> spec.Settings:
        """As the simulator takes it."""
        from modelium.control import rules
        from modelium.sim import spec

        schedule = tuple(build(spec.FaultAt(0.0, ""), fault) for fault in self.faults.schedule)
        return build(
            spec.Settings(),
            self,
            admission=build(spec.Admission(), self.admission),
            faults=build(spec.Faults(), self.faults, schedule=schedule),
            limits=build(rules.Limits(), self.limits),
        )
