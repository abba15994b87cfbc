"""The simulated cluster: SimPy owns what is rare, and asks the compiled plane for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy as twin_of
from typing import Any

import simpy

from modelium.control.costs import ConfiguredFacts, StagedCosts
from modelium.control.lifecycle import Lifecycle, decision
from modelium.control.policy_channel import PolicyChannel
from modelium.control.rules import may_begin, refusal
from modelium.control.state import Copy, State
from modelium.core import (
    COMING,
    Action,
    Decision,
    Done,
    Event,
    Load,
    Miss,
    Move,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.sim.course import Course, LostError, Steps, Urgent
from modelium.sim.data_plane import Plane
from modelium.sim.faults import FaultSource
from modelium.sim.inputs import SimInput
from modelium.sim.kv_utilization import KvUtilization
from modelium.sim.links import NodeLinks
from modelium.sim.transitions import LoadError, Transitions
from modelium.units import PS_PER_S, ps


class Clock(simpy.Environment):
    """SimPy's clock, which the compiled plane may pass by where no event lies in between."""

    def pass_to(self, at_ps: int) -> None:
        """It is `at_ps` now."""
        self._now = at_ps

    def now_ps(self) -> float:
        """What `now` is here: whole picoseconds."""
        return self._now

    def now_s(self) -> float:
        """The same in seconds."""
        return self._now / PS_PER_S


class SimCluster:
    """A `Cluster` in simulated time. `run` plays the trace; policies act through `start`."""

    def __init__(self, given: SimInput, plane: Plane, seed: int) -> None:
        self.env = Clock()
        self.settings = given.settings
        self.plane = plane
        # Its own: what this run loads first must not make the next one's loads shorter.
        self.facts: ConfiguredFacts = twin_of(given.facts)
        self.facts.seen = set(given.facts.seen)
        self.state = State(
            {model.name: model for model in given.models},
            {node.id: node for node in given.nodes},
            {gpu.id: gpu for gpu in given.gpus},
            plane.demand,
            self.env.now_s,
            plane.waiting_models,
            given.settings.limits,
        )
        self.state.costs = StagedCosts(self.state, self.facts, given.work)
        self.lifecycle = Lifecycle(self.state, self)
        self.kv_use = KvUtilization(
            self.env, self.state, plane.w.engines, float(plane.w.busy.width_s[0])
        )
        self.faults = FaultSource(
            self.env, self.state, given.settings.faults, seed, self.kill, self.tell
        )
        links = {node.id: self._links(given, node.id) for node in given.nodes}
        self._transitions = Transitions(
            self.env, self.lifecycle, self.facts, self.faults, links, self.settings.host_cache,
            self._idle_event,
        )  # fmt: skip
        self.decisions: list[Decision] = []
        self.channel = PolicyChannel(
            plane,
            self.env.now_ps,
            self._soon,
            lambda gpus: may_begin(self.state, self.state.limits, gpus),
        )
        self._under_way: dict[str, Course] = {}
        self._draining: dict[str, tuple[Copy, simpy.Event]] = {}
        self.instance_ids: list[str] = []
        self._expiring: set[str] = set()
        self._full_bytes: dict[str, int] = {}

    # The interface of `modelium.core.Cluster`

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` of every event from now on."""
        self.channel.listen(hear)

    def start(self, action: Action) -> None:
        """Begin `action` and return at once; `Done` follows, also when it is refused."""
        if self.settings.charge_decide and self.channel.talking:
            self.env.process(self._thought(action, time.perf_counter() - self.channel.asked_s))
        else:
            self._begin(action)

    def _thought(self, action: Action, decide_s: float) -> Steps:
        """Begin an action as late as the policy took to decide it."""
        yield self.env.timeout(ps(decide_s))
        self._begin(action)

    def _begin(self, action: Action) -> None:
        if isinstance(action, Remind):
            wait_ps = max(0, ps(action.at_s) - int(self.env.now))
            self.env.timeout(wait_ps).callbacks.append(lambda _: self.tell(Tick()))
            return
        why = refusal(self.state, action, self.settings.limits)
        line = self._write(action, why)
        if why:
            self.channel.answer(Done(action, why))
            return
        match action:
            case Load(model, gpus):
                self._load(action, line, model, gpus, action.kv_bytes)
            case Move(instance, gpus):
                self._move(action, line, self.state.copy(instance), gpus)
            case Unload(instance):
                copy = self.lifecycle.close(self.state.copy(instance), Phase.LEAVING)
                self._go(action, line, copy, self._transitions.unload(copy, line))
            case Sleep(instance, level):
                self._sleep(action, line, self.state.copy(instance), level)
            case Wake(instance):
                self._wake(action, line, self.state.copy(instance))

    # The run

    def run(self, *, tick_s: float | None, end_s: float, answers_misses: bool = True) -> None:
        """Play the whole trace; at the latest until `end_s`."""
        self.channel.answers_misses = answers_misses
        end_ps = ps(end_s)
        self.tell(Tick())
        if tick_s is not None:
            self.env.process(self._ticks(ps(tick_s)))
        self.faults.begin()
        self.env.process(self.kv_use.watch())
        self.play(end_ps)
        self.lifecycle.timeline.close()

    def play(self, end_ps: int, *, on: bool = False) -> None:
        """Let time pass until `end_ps`, or until all requests are settled unless `on`."""
        env, plane = self.env, self.plane
        while on or not plane.finished():
            soonest = env.peek()
            horizon = end_ps if soonest > end_ps else int(soonest)
            why = plane.advance(horizon)
            env.pass_to(plane.now_ps)
            if why == plane.MISS:
                self._missed(plane.missed_model())
            elif why == plane.IDLE:
                self._fell_idle(plane.idle_slot())
            elif horizon >= end_ps:
                break
            else:
                while env.peek() <= horizon:
                    env.step()
                if self.channel.unasked and not self._under_way and plane.quiet():
                    self.channel.offer_to_all()

    def tell(self, event: Event) -> None:
        """Let the policy hear `event`, then what follows from it at this instant."""
        self.channel.tell(event)

    def _soon(self, say: Callable[[], None]) -> None:
        self.env.timeout(0).callbacks.append(lambda _: say())

    def _missed(self, model: str) -> None:
        if self.settings.admission.max_wait_s < float("inf") and model not in self._expiring:
            self._expiring.add(model)
            self.env.process(self._expire(model))
        self.tell(Miss(model))

    def _fell_idle(self, slot: int) -> None:
        for copy, idle in list(self._draining.values()):
            if not copy.busy:
                del self._draining[copy.id]
                idle.succeed()
        copy_in = self.plane.copy_in(slot)
        if copy_in is not None and copy_in.phase is Phase.READY:
            self.channel.fell_idle(copy_in)

    def _expire(self, model: str) -> Any:
        wait_ps = ps(self.settings.admission.max_wait_s)
        while (oldest := self.plane.oldest_waiting_ps(model)) is not None:
            yield self.env.timeout(max(0, oldest + wait_ps - int(self.env.now)))
            self.plane.expire(model, int(self.env.now) - wait_ps)
        self._expiring.discard(model)

    def _ticks(self, period_ps: int) -> Any:
        while True:
            yield self.env.timeout(period_ps)
            self.tell(Tick())

    # Beginning of transitions

    def _load(
        self, action: Load, line: Decision, model: str, gpus: tuple[str, ...], kv: int | None
    ) -> None:
        copy = self._new_copy(model, gpus, kv)
        line.instance = copy.id
        if self.env.now == 0 and self.settings.prepared:
            self._prepare(action, line, copy)
        else:
            self._go(action, line, copy, self._transitions.load(copy, line))

    def _prepare(self, action: Load, line: Decision, copy: Copy) -> None:
        """What is loaded before the trace begins costs its users nothing."""
        ledger = self.lifecycle.ledger
        if ledger.withdraw(ledger.take(copy.gpus, copy.bytes_per_gpu, lambda: None)):
            self._go(action, line, copy, self._transitions.load(copy, line))
            return
        self.lifecycle.took(copy, copy.bytes_per_gpu)
        self.facts.seen.add((copy.model, copy.node))
        if self.settings.host_cache:
            size = self.state.models[copy.model].weights_bytes
            self.state.ram[copy.node].cache(copy.model, size)
        self.lifecycle.make_ready(copy, "")
        line.end_s = self.state.now_s
        self.channel.answer(Done(action, "", copy.id))

    def _new_copy(self, model: str, gpus: tuple[str, ...], kv_bytes: int | None) -> Copy:
        number = len(self.instance_ids) + 1
        spec = self.state.models[model]
        kv = spec.kv_bytes if kv_bytes is None else kv_bytes
        copy = self.plane.admit(model, self.state.gpus[gpus[0]], gpus, kv, number)
        self.instance_ids.append(copy.id)
        copy.bytes_per_gpu = self._full_bytes[copy.id] = spec.bytes_per_gpu(kv)
        self.state.add(copy)
        self.kv_use.enter(copy)
        self.plane.set_coming(model, 1)
        return copy

    def _move(self, action: Move, line: Decision, old: Copy, gpus: tuple[str, ...]) -> None:
        new = self._new_copy(old.model, gpus, None)
        line.instance = new.id
        self._go(action, line, new, self._transitions.move(old, new, line, self.start))

    def _sleep(self, action: Sleep, line: Decision, copy: Copy, level: int) -> None:
        size = self.state.models[copy.model].weights_bytes if level == 1 else 0
        self.lifecycle.close(copy, Phase.SUSPENDING, host_bytes=size, sleep_level=level)
        self._go(action, line, copy, self._transitions.sleep(copy, line, level))

    def _wake(self, action: Wake, line: Decision, copy: Copy) -> None:
        self.state.change(copy, Phase.WAKING, bytes_per_gpu=self._full_bytes[copy.id])
        self.plane.set_coming(copy.model, 1)
        self._go(action, line, copy, self._transitions.wake(copy, line))

    def _go(self, action: Action, line: Decision, copy: Copy, steps: Steps) -> None:
        course = Course(self.env, self._watch(action, line, copy, steps))
        self._under_way[copy.id] = course
        if self.channel.talking:
            course.begin()  # should it end at once, that waits until the policy was heard
        else:
            Urgent(self.env, course.begin)

    def _watch(self, action: Action, line: Decision, copy: Copy, steps: Steps) -> Steps:
        """Run one transition to its end, good or bad, and say so."""
        error = ""
        try:
            yield from steps
        except (LoadError, LostError) as failure:
            error = str(failure)
            self.lifecycle.forget(copy)
        self._under_way.pop(copy.id, None)
        line.end_s, line.error = self.state.now_s, error
        self.tell(Done(action, error, copy.id))

    # How requests reach instances, for `Lifecycle`

    def open(self, instance: Copy, cold: str) -> None:
        """It takes requests from now on, first those that waited for it."""
        self.plane.open(instance)
        self.plane.set_coming(instance.model, -1)
        self.plane.release(instance.model, cold)

    def close(self, instance: Copy) -> None:
        """It takes no more requests."""
        self.plane.close(instance)

    def forget(self, instance: Copy) -> None:
        """It is gone."""
        if instance.phase in COMING:
            self.plane.set_coming(instance.model, -1)
        self.kv_use.forget(instance)
        self.plane.dismiss(instance)
        del self._full_bytes[instance.id]

    # Idle and lost instances

    def _idle_event(self, copy: Copy) -> simpy.Event:
        idle = self.env.event()
        self._draining[copy.id] = (copy, idle)
        self.plane.hear_idle(copy)
        return idle

    def kill(self, copy: Copy, why: str) -> None:
        """A copy is lost at once, in whatever phase; its requests are retried or fail."""
        self.plane.close(copy)
        self._draining.pop(copy.id, None)
        under_way = self._under_way.get(copy.id)
        self.plane.crash(copy, self.settings.faults.retries)
        if under_way is not None:
            under_way.cut_off(why)
        else:
            self.lifecycle.forget(copy)

    def _write(self, action: Action, why: str) -> Decision:
        line = decision(self.state, action, why)
        self.decisions.append(line)
        self.channel.acted()
        return line

    def _links(self, given: SimInput, node: str) -> NodeLinks:
        names = [gpu.id for gpu in given.gpus if gpu.node == node]
        spec = given.facts.links(node)
        return NodeLinks(self.env, spec, {name: k for k, name in enumerate(names)})
