"""Faults by schedule and by rate: lost GPUs and nodes, crashes, loads that fail or are slow."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from modelium.core import Fault, Phase
from modelium.errors import ConfigError, did_you_mean
from modelium.sim.spec import FaultAt, Faults
from modelium.state import Copy
from modelium.units import ps

if TYPE_CHECKING:
    from modelium.sim.cluster import SimCluster

KINDS = ("gpu_lost", "node_lost", "crash", "load_fails", "load_slow")


class FaultSource:
    """Lets things break; the same seed breaks the same things."""

    def __init__(self, cluster: SimCluster, spec: Faults, seed: int) -> None:
        self._cluster = cluster
        self._spec = spec
        self._seed = seed
        self._failing: set[str] = set()
        self._slow: dict[str, float] = {}

    @cached_property
    def _rng(self) -> dict[str, np.random.Generator]:
        streams = np.random.SeedSequence([self._seed, 0xFA17]).spawn(3)
        rngs = map(np.random.default_rng, streams)
        return dict(zip(("load", "gpu", "crash"), rngs, strict=True))

    def begin(self) -> None:
        """Start all fault processes."""
        env = self._cluster.env
        for fault in self._spec.schedule:
            self._check(fault)
            env.process(self._scheduled(fault))
        if self._spec.gpu_mtbf_s < float("inf"):
            for gpu in self._cluster.state.all_gpus:
                env.process(self._failing_gpu(gpu))
        if self._spec.crash_mtbf_s < float("inf"):
            env.process(self._crashes())

    def load_fails(self, model: str) -> bool:
        """Whether the load that is under way fails."""
        if model in self._failing or "" in self._failing:
            return True
        return self._spec.load_failure > 0 and self._rng["load"].random() < self._spec.load_failure

    def slow_load(self) -> float:
        """How many times as long the load that begins now takes."""
        factor = max(self._slow.values()) if self._slow else 1.0
        if self._spec.slow_load > 0 and self._rng["load"].random() < self._spec.slow_load:
            factor = max(factor, self._spec.slow_factor)
        return factor

    def _check(self, fault: FaultAt) -> None:
        state = self._cluster.state
        if fault.kind not in KINDS:
            hint = did_you_mean(fault.kind, KINDS) or f" Known: {', '.join(KINDS)}."
            raise ConfigError(f"no fault called {fault.kind!r}.{hint}")
        known = {
            "gpu_lost": list(state.all_gpus),
            "node_lost": list(state.nodes),
        }.get(fault.kind, ["", *state.models])
        if fault.target not in known:
            hint = did_you_mean(fault.target, known)
            raise ConfigError(f"{fault.kind}: nothing called {fault.target!r}.{hint}")

    def _scheduled(self, fault: FaultAt) -> Any:
        yield self._cluster.env.timeout(ps(fault.at_s))
        match fault.kind:
            case "gpu_lost":
                yield from self._lose([fault.target], fault.for_s)
            case "node_lost":
                gpus = self._cluster.state.all_gpus.values()
                self._cluster.state.ram[fault.target].clear()
                yield from self._lose([g.id for g in gpus if g.node == fault.target], fault.for_s)
            case "crash":
                self._crash(self._busiest(fault.target))
            case "load_fails":
                self._failing.add(fault.target)
                yield from self._for(fault.for_s)
                self._failing.discard(fault.target)
            case "load_slow":
                self._slow[fault.target] = fault.factor
                yield from self._for(fault.for_s)
                self._slow.pop(fault.target, None)

    def _for(self, seconds: float) -> Any:
        env = self._cluster.env
        yield env.timeout(ps(seconds)) if seconds < 1e9 else env.event()

    def _lose(self, gpus: list[str], for_s: float) -> Any:
        cluster = self._cluster
        gpus = [gpu for gpu in gpus if gpu in cluster.state.gpus]
        for gpu in gpus:
            cluster.state.lose(gpu)
        for gpu in gpus:
            for copy in list(cluster.state.instances_on(gpu)):
                cluster.kill(cluster.state.copy(copy.id), f"{gpu} was lost")
        for gpu in gpus:
            cluster.tell(Fault(gpu, "lost"))
        yield from self._for(for_s)
        for gpu in gpus:
            cluster.state.regain(gpu)
            cluster.tell(Fault(gpu, "back"))

    def _failing_gpu(self, gpu: str) -> Any:
        while True:
            wait_s = float(self._rng["gpu"].exponential(self._spec.gpu_mtbf_s))
            yield self._cluster.env.timeout(ps(min(wait_s, 8e6)))
            yield from self._lose([gpu], self._spec.gpu_repair_s)

    def _crashes(self) -> Any:
        """Each ready instance crashes at the same rate: thinning of one common process."""
        while True:
            ready = self._ready()
            mean_s = self._spec.crash_mtbf_s / max(1, len(ready))
            wait_s = float(self._rng["crash"].exponential(mean_s))
            yield self._cluster.env.timeout(ps(min(wait_s, 8e6)))
            ready = self._ready()
            if ready:
                self._crash(ready[int(self._rng["crash"].integers(len(ready)))])

    def _ready(self) -> list[Copy]:
        state = self._cluster.state
        return [
            state.copy(name) for name, copy in state.instances.items() if copy.phase is Phase.READY
        ]

    def _busiest(self, model: str) -> Copy | None:
        copies = [c for c in self._ready() if not model or c.model == model]
        return max(copies, key=lambda c: (c.running + c.waiting, c.id), default=None)

    def _crash(self, copy: Copy | None) -> None:
        if copy is not None:
            self._cluster.kill(copy, "crashed")
            self._cluster.tell(Fault(copy.id, "crashed"))
