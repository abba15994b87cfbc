"""What an instance goes through: load, unload, sleep, wake, move.

Each takes the time of its stages (`modelium.control.costs.Stages`) and moves weights over the links
that it shares with others. Memory is taken from the ledger before the first stage and given back
after the last. A transition that is cut off (its GPU or instance was lost) leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import simpy

from modelium.control.costs import ConfiguredFacts
from modelium.control.lifecycle import Lifecycle
from modelium.control.state import Copy
from modelium.core import Decision, Phase, Tier, Unload
from modelium.sim.course import LostError, Steps
from modelium.sim.faults import FaultSource
from modelium.sim.links import NodeLinks
from modelium.units import PS_PER_S, ps


class LoadError(Exception):
    """The engine did not come up."""


@dataclass(frozen=True)
class Transitions:
    """The steps of each transition, for SimPy."""

    env: simpy.Environment
    lifecycle: Lifecycle
    facts: ConfiguredFacts
    faults: FaultSource
    links: Mapping[str, NodeLinks]
    """Of each node."""
    host_cache: bool
    """Weights that were read stay in RAM."""
    idle_event: Callable[[Copy], simpy.Event]
    """Happens when an instance that takes no more requests has answered its last."""

    def load(self, copy: Copy, line: Decision) -> Steps:
        """Bring up a new copy: wait for room, start the process, read weights, compile, capture."""
        yield from self._take(copy, copy.bytes_per_gpu)
        stages, slow = self.facts.stages(copy.model), self.faults.slow_load()
        first = not self.facts.compiled(copy.model, copy.node)
        self.lifecycle.timeline.mark(copy, "loading")
        yield from self._stage(line, "start", stages.before_s * slow)
        tier = self.lifecycle.state.source_tier(copy.model, copy.node)
        line.tier = tier.value
        yield from self._weights(copy, line, tier, slow)
        if self.faults.load_fails(copy.model):
            raise LoadError("the engine failed to start")
        yield from self._stage(line, "compile and capture", stages.after_s(first) * slow)
        self.facts.seen.add((copy.model, copy.node))
        self.lifecycle.make_ready(copy, line.tier)

    def wake(self, copy: Copy, line: Decision) -> Steps:
        """Bring back a sleeping copy: level 1 from pinned RAM, level 2 as a load does."""
        life = self.lifecycle
        yield from self._take(copy, copy.bytes_per_gpu - life.held[copy.id])
        stages, slow = self.facts.stages(copy.model), self.faults.slow_load()
        life.timeline.mark(copy, "loading")
        line.tier = f"sleep-{copy.sleep_level}"
        yield from self._stage(line, "wake", stages.wake_s[copy.sleep_level - 1] * slow)
        if copy.sleep_level == 1:
            size = life.state.models[copy.model].weights_bytes
            steps = self.links[copy.node].move(size * slow, copy.gpus)
            yield from self._timed(line, "weights", steps)
        else:
            tier = life.state.source_tier(copy.model, copy.node)
            yield from self._weights(copy, line, tier, slow)
        life.state.change(copy, Phase.WAKING, host_bytes=0, sleep_level=0)
        life.make_ready(copy, line.tier)

    def unload(self, copy: Copy, line: Decision) -> Steps:
        """Drop a copy once it is idle; its memory is free when the process is gone."""
        yield from self._drain(copy, line)
        self.lifecycle.timeline.mark(copy, "leaving")
        yield from self._stage(line, "exit", self.facts.stages(copy.model).unload_s)
        self.lifecycle.forget(copy)

    def sleep(self, copy: Copy, line: Decision, level: int) -> Steps:
        """Free a copy's GPU memory, keep its process; level 1 copies the weights to RAM first."""
        life = self.lifecycle
        yield from self._drain(copy, line)
        life.timeline.mark(copy, "leaving")
        yield from self._stage(line, "sleep", self.facts.stages(copy.model).sleep_s[level - 1])
        spec = life.state.models[copy.model]
        if level == 1:
            steps = self.links[copy.node].move(spec.weights_bytes, copy.gpus, up=True)
            yield from self._timed(line, "weights", steps)
        kept = min(spec.asleep_bytes, copy.bytes_per_gpu)
        life.state.change(copy, Phase.ASLEEP, bytes_per_gpu=kept)
        life.timeline.mark(copy, "asleep")
        life.hold(copy, kept)

    def move(self, old: Copy, new: Copy, line: Decision, start: Callable[[Unload], None]) -> Steps:
        """Load `new` elsewhere; `old` serves until then, drains and goes."""
        yield from self.load(new, line)
        if old.id in self.lifecycle.state.instances and old.phase is Phase.READY:
            start(Unload(old.id, f"moved to {', '.join(new.gpus)}", drain=True))

    def _take(self, copy: Copy, more_bytes: int) -> Steps:
        granted, ledger = self.env.event(), self.lifecycle.ledger
        wanted = ledger.take(copy.gpus, more_bytes, granted.succeed)
        try:
            yield granted
        except LostError:
            if not ledger.withdraw(wanted):
                ledger.give(copy.gpus, more_bytes)
            raise
        self.lifecycle.took(copy, more_bytes)

    def _stage(self, line: Decision, name: str, seconds: float) -> Steps:
        if seconds > 0:
            yield self.env.timeout(ps(seconds))
            line.stages[name] = seconds

    def _weights(self, copy: Copy, line: Decision, tier: Tier, slow: float) -> Steps:
        state = self.lifecycle.state
        size = state.models[copy.model].weights_bytes
        steps = self.links[copy.node].move(
            size * slow, copy.gpus, disk=tier is Tier.DISK, loader=True
        )
        yield from self._timed(line, "weights", steps)
        if self.host_cache:
            state.ram[copy.node].cache(copy.model, size)

    def _timed(self, line: Decision, name: str, steps: Steps) -> Steps:
        begin = self.env.now
        yield from steps
        line.stages[name] = (self.env.now - begin) / PS_PER_S

    def _drain(self, copy: Copy, line: Decision) -> Steps:
        if copy.busy:
            yield from self._timed(line, "drain", self._idle(copy))

    def _idle(self, copy: Copy) -> Steps:
        yield self.idle_event(copy)
