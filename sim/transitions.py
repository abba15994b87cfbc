"""What an instance goes through: load, unload, sleep, wake, move.

Each takes the time of its stages (`modelium.costs.Stages`) and moves weights over the links that
it shares with others. Memory is taken from `Room` before the first stage and given back after the
last. A transition that is cut off (its GPU or instance was lost) leaves nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelium.core import Decision, Phase, Tier, Unload
from modelium.sim.course import LostError, Steps
from modelium.state import Copy
from modelium.units import PS_PER_S, ps

if TYPE_CHECKING:
    from modelium.sim.cluster import SimCluster


class LoadError(Exception):
    """The engine did not come up."""


def load(cluster: SimCluster, copy: Copy, line: Decision) -> Steps:
    """Bring up a new copy: wait for room, start the process, read weights, compile, capture."""
    yield from _take(cluster, copy, copy.bytes_per_gpu)
    stages, slow = cluster.facts.stages(copy.model), cluster.faults.slow_load()
    first = not cluster.facts.compiled(copy.model, copy.node)
    cluster.timeline.mark(copy, "loading")
    yield from _stage(cluster, line, "start", stages.before_s * slow)
    tier = cluster.state.source_tier(copy.model, copy.node)
    line.tier = tier.value
    yield from _weights(cluster, copy, line, tier, slow)
    if cluster.faults.load_fails(copy.model):
        raise LoadError("the engine failed to start")
    yield from _stage(cluster, line, "compile and capture", stages.after_s(first) * slow)
    cluster.facts.seen.add((copy.model, copy.node))
    cluster.make_ready(copy, line.tier)


def wake(cluster: SimCluster, copy: Copy, line: Decision) -> Steps:
    """Bring back a sleeping copy: level 1 from pinned RAM, level 2 like the weights of a load."""
    asleep_bytes = cluster.held[copy.id]
    yield from _take(cluster, copy, copy.bytes_per_gpu - asleep_bytes)
    stages, slow = cluster.facts.stages(copy.model), cluster.faults.slow_load()
    cluster.timeline.mark(copy, "loading")
    line.tier = f"sleep-{copy.sleep_level}"
    yield from _stage(cluster, line, "wake", stages.wake_s[copy.sleep_level - 1] * slow)
    if copy.sleep_level == 1:
        size = cluster.state.models[copy.model].weights_bytes
        yield from _timed(
            cluster, line, "weights", cluster.links[copy.node].move(size * slow, copy.gpus)
        )
    else:
        tier = cluster.state.source_tier(copy.model, copy.node)
        yield from _weights(cluster, copy, line, tier, slow)
    cluster.state.change(copy, Phase.WAKING, host_bytes=0, sleep_level=0)
    cluster.make_ready(copy, line.tier)


def unload(cluster: SimCluster, copy: Copy, line: Decision) -> Steps:
    """Drop a copy once it is idle; its memory is free when the process is gone."""
    yield from _drain(cluster, copy, line)
    cluster.timeline.mark(copy, "leaving")
    yield from _stage(cluster, line, "exit", cluster.facts.stages(copy.model).unload_s)
    cluster.forget(copy)


def sleep(cluster: SimCluster, copy: Copy, line: Decision, level: int) -> Steps:
    """Free a copy's GPU memory, keep its process; level 1 copies the weights to RAM first."""
    yield from _drain(cluster, copy, line)
    cluster.timeline.mark(copy, "leaving")
    yield from _stage(cluster, line, "sleep", cluster.facts.stages(copy.model).sleep_s[level - 1])
    spec = cluster.state.models[copy.model]
    if level == 1:
        move = cluster.links[copy.node].move(spec.weights_bytes, copy.gpus, up=True)
        yield from _timed(cluster, line, "weights", move)
    cluster.state.change(
        copy, Phase.ASLEEP, bytes_per_gpu=min(spec.asleep_bytes, copy.bytes_per_gpu)
    )
    cluster.timeline.mark(copy, "asleep")
    cluster.hold(copy, copy.bytes_per_gpu)


def move(cluster: SimCluster, old: Copy, new: Copy, line: Decision) -> Steps:
    """Load `new` elsewhere; `old` serves until then, drains and goes."""
    yield from load(cluster, new, line)
    if old.id in cluster.state.instances and old.phase is Phase.READY:
        cluster.start(Unload(old.id, f"moved to {', '.join(new.gpus)}", drain=True))


def _take(cluster: SimCluster, copy: Copy, more_bytes: int) -> Steps:
    granted = cluster.env.event()
    wanted = cluster.room.take(copy.gpus, more_bytes, granted.succeed)
    try:
        yield granted
    except LostError:
        if not cluster.room.withdraw(wanted):
            cluster.room.give(copy.gpus, more_bytes)
        raise
    cluster.held[copy.id] = cluster.held.get(copy.id, 0) + more_bytes


def _stage(cluster: SimCluster, line: Decision, name: str, seconds: float) -> Steps:
    if seconds > 0:
        yield cluster.env.timeout(ps(seconds))
        line.stages[name] = seconds


def _weights(cluster: SimCluster, copy: Copy, line: Decision, tier: Tier, slow: float) -> Steps:
    size = cluster.state.models[copy.model].weights_bytes
    links = cluster.links[copy.node]
    steps = links.move(size * slow, copy.gpus, disk=tier is Tier.DISK, loader=True)
    yield from _timed(cluster, line, "weights", steps)
    if cluster.settings.host_cache:
        cluster.state.ram[copy.node].cache(copy.model, size)


def _timed(cluster: SimCluster, line: Decision, name: str, steps: Steps) -> Steps:
    begin = cluster.env.now
    yield from steps
    line.stages[name] = (cluster.env.now - begin) / PS_PER_S


def _drain(cluster: SimCluster, copy: Copy, line: Decision) -> Steps:
    if copy.busy:
        yield from _timed(cluster, line, "drain", _idle(cluster, copy))


def _idle(cluster: SimCluster, copy: Copy) -> Steps:
    yield cluster.idle_event(copy)
