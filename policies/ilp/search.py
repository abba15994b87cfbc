"""The search for one plan as a pure function: all is read before, nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelium.core import AWAKE, ClusterState
from modelium.policies.ilp.problem import MICRO, Effort, Fate, Plan, Problem
from modelium.policies.ilp.start import possible_gain
from modelium.policies.ilp.view import View
from modelium.policies.toolkit.diff import Target
from modelium.units import MIB, format_bytes


@dataclass(frozen=True)
class Answer:
    """What a search found, and what it was asked about."""

    problem: Problem
    asked_s: float
    target: Target
    to_sleep: Mapping[str, str] = field(default_factory=dict)
    """The copies to put to sleep, each with the reason."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By model: what the plan gains by its change."""
    kv_bytes: Mapping[str, int] = field(default_factory=dict)
    """By model: KV pool of a new copy, over all its GPUs."""
    keep: frozenset[str] = frozenset()
    """Copies that may stay, awake or asleep."""


class Question:
    """Where should the copies be? Reads the state when it is made, and never again."""

    def __init__(self, view: View, effort: Effort, min_gain: float, hysteresis: float) -> None:
        self.problem = view.problem()
        self._effort, self._min_gain, self._hysteresis = effort, min_gain, hysteresis
        self._asked_s = view.state.now_s
        self._as_it_is = _as_it_is(view.state)
        self._rate_per_s = {name: view.rate_per_s(name) for name in view.state.models}
        self._bytes = {
            copy.id: copy.bytes_per_gpu * len(copy.gpus) for copy in view.state.instances.values()
        }

    def stay(self) -> Answer:
        """Change nothing."""
        return Answer(self.problem, self._asked_s, self._as_it_is)

    def search(self) -> Answer:
        """Return what is there now, unless changing it gains enough; may run in a thread."""
        least = self._min_gain * MICRO
        if possible_gain(self.problem) < least:
            return self.stay()
        from modelium.policies.ilp.model import solve  # OR-Tools takes a second to import

        stay, best = solve(self.problem, self._effort)
        gain = best.value - stay.value
        needed = max(least, self._hysteresis * abs(stay.value))
        if best.missing >= stay.missing and gain < needed:
            return self.stay()
        return self._change(best, gain / MICRO)

    def _change(self, plan: Plan, gain: float) -> Answer:
        to_sleep, reasons = {}, {}
        comes = [new.model for new in plan.new]
        for copy in self.problem.held:
            fate = plan.fates[copy.id]
            if fate is Fate.AWAKE and copy.now is Fate.ASLEEP:
                comes.append(copy.model)
            elif fate is not Fate.AWAKE and copy.now is Fate.AWAKE:
                size = format_bytes(self._bytes[copy.id])
                rate = self._rate_per_s[copy.model]
                reasons[copy.model] = (
                    f"plan {gain:+.1f}: frees {size} of {copy.model} ({rate:.2g}/s)"
                )
                if fate is Fate.ASLEEP:
                    to_sleep[copy.id] = reasons[copy.model]
        for model in comes:
            rate = self._rate_per_s[model]
            reasons[model] = f"plan {gain:+.1f}: serves {rate:.2g}/s of {model} without delay"
        return Answer(
            self.problem,
            self._asked_s,
            self._target(plan),
            to_sleep,
            reasons,
            kv_bytes={new.model: new.kv_mib * MIB * len(new.gpus) for new in plan.new},
            keep=frozenset(copy for copy, fate in plan.fates.items() if fate is not Fate.GONE),
        )

    def _target(self, plan: Plan) -> Target:
        target: dict[str, list[tuple[str, ...]]] = {}
        for copy in self.problem.held:
            if plan.fates[copy.id] is Fate.AWAKE:
                target.setdefault(copy.model, []).append(copy.gpus)
        for new in plan.new:
            target.setdefault(new.model, []).append(new.gpus)
        return target


def _as_it_is(state: ClusterState) -> Target:
    target: dict[str, list[tuple[str, ...]]] = {}
    for copy in state.instances.values():
        if copy.phase in AWAKE:
            target.setdefault(copy.model, []).append(copy.gpus)
    return target
