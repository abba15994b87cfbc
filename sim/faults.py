"""Faults by schedule and by rate: lost GPUs and nodes, crashes, loads that fail or are slow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import simpy

from modelium.control.state import Copy, State
from modelium.core import Event, Fault, Phase
from modelium.errors import ConfigError, did_you_mean
from modelium.sim.spec import FaultAt, Faults
from modelium.units import ps

KINDS = ("gpu_lost", "node_lost", "crash", "load_fails", "load_slow")


class FaultSource:
    """Lets things break; the same seed breaks the same things."""

    def __init__(
        self,
        env: simpy.Environment,
        state: State,
        spec: Faults,
        seed: int,
        kill: Callable[[Copy, str], None],
        tell: Callable[[Event], None],
    ) -> None:
        """`kill` loses an instance and says why; `tell` lets the policy hear of a fault."""
        self._env, self._state, self._kill, self._tell = env, state, kill, tell
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
        env = self._env
        for fault in self._spec.schedule:
            self._check(fault)
            env.process(self._scheduled(fault))
        if self._spec.gpu_mtbf_s < float("inf"):
            for gpu in self._state.all_gpus:
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
        state = self._state
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
        yield self._env.timeout(ps(fault.at_s))
        match fault.kind:
            case "gpu_lost":
                yield from self._lose([fault.target], fault.for_s)
            case "node_lost":
                gpus = self._state.all_gpus.values()
                self._state.ram[fault.target].clear()
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
        env = self._env
        yield env.timeout(ps(seconds)) if seconds < 1e9 else env.event()

    def _lose(self, gpus: list[str], for_s: float) -> Any:
        state = self._state
        gpus = [gpu for gpu in gpus if gpu in state.gpus]
        for gpu in gpus:
            state.lose(gpu)
        for gpu in gpus:
            for copy in list(state.instances_on(gpu)):
                self._kill(state.copy(copy.id), f"{gpu} was lost")
        for gpu in gpus:
            self._tell(Fault(gpu, "lost"))
        yield from self._for(for_s)
        for gpu in gpus:
            state.regain(gpu)
            self._tell(Fault(gpu, "back"))

    def _failing_gpu(self, gpu: str) -> Any:
        while True:
            wait_s = float(self._rng["gpu"].exponential(self._spec.gpu_mtbf_s))
            yield self._env.timeout(ps(min(wait_s, 8e6)))
            yield from self._lose([gpu], self._spec.gpu_repair_s)

    def _crashes(self) -> Any:
        """Each ready instance crashes at the same rate: thinning of one common process."""
        while True:
            ready = self._ready()
            mean_s = self._spec.crash_mtbf_s / max(1, len(ready))
            wait_s = float(self._rng["crash"].exponential(mean_s))
            yield self._env.timeout(ps(min(wait_s, 8e6)))
            ready = self._ready()
            if ready:
                self._crash(ready[int(self._rng["crash"].integers(len(ready)))])

    def _ready(self) -> list[Copy]:
        state = self._state
        return [
            state.copy(name) for name, copy in state.instances.items() if copy.phase is Phase.READY
        ]

    def _busiest(self, model: str) -> Copy | None:
        copies = [c for c in self._ready() if not model or c.model == model]
        return max(copies, key=lambda c: (c.running + c.waiting, c.id), default=None)

    def _crash(self, copy: Copy | None) -> None:
        if copy is not None:
            self._kill(copy, "crashed")
            self._tell(Fault(copy.id, "crashed"))
