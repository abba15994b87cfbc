"""`Planned`: say where every copy should be, now and then. The base of every placement policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Load,
    Miss,
    Move,
    Policy,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.policies.diff import Target, diff

Plan = Callable[[ClusterState], Target]
"""Where each model's copies should be, given everything that is known now."""
EARLY_S = 1e-6
"""A tick that rounding brings this much early still counts as the next period."""


class Planned:
    """Ask `plan` for a target every `every_s` (None: once) and pursue it until the next plan.

    Between plans `fallback` answers misses, so that nobody waits for the next plan; what it loads
    and evicts becomes part of the target, so that the plan does not undo it. Copies that are not
    in the target leave when their room is needed; with `tidy` they leave anyway.
    """

    def __init__(
        self,
        plan: Plan,
        every_s: float | None,
        *,
        fallback: Policy | None = None,
        tidy: bool = False,
    ) -> None:
        self.every_s = every_s
        self._plan = plan
        self._fallback = fallback
        self._tidy = tidy
        self._due_s = float("-inf")
        self._target: dict[str, list[tuple[str, ...]]] = {}

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Plan when it is time; else go on towards the target, and let `fallback` react."""
        match event:
            case Tick() if state.now_s >= self._due_s - EARLY_S:
                self._due_s = state.now_s + (self.every_s or float("inf"))
                plan = self._plan(state)
                self._target = {model: list(map(tuple, sets)) for model, sets in plan.items()}
            case Done(action, error, instance) if error and not instance:
                self._give_up(action)  # refused: asking again at once would not help
                return ()
            case Miss():
                return self._react(state, event)
        return self.steps(state, self._target, self._tidy) or self._react(state, event)

    def steps(self, state: ClusterState, target: Target, tidy: bool) -> Sequence[Action]:
        """What to do now on the way to `target`; a policy with more to say overrides it."""
        return diff(state, target, tidy=tidy)

    def _react(self, state: ClusterState, event: Event) -> Iterable[Action]:
        if self._fallback is None:
            return ()
        actions = tuple(self._fallback.decide(state, event))
        for action in actions:
            self._amend(state, action)
        return actions

    def _amend(self, state: ClusterState, action: Action) -> None:
        """Make what `fallback` does part of the target."""
        match action:
            case Load(model, gpus):  # instead of copies that the plan wanted but that are not there
                there = {frozenset(copy.gpus) for copy in state.instances_of(model)}
                kept = [sets for sets in self._target.get(model, []) if frozenset(sets) in there]
                self._target[model] = [*kept, gpus]
            case Wake(instance):
                copy = state.instances[instance]
                self._target.setdefault(copy.model, []).append(copy.gpus)
            case Unload(instance) | Sleep(instance) | Move(instance):
                copy = state.instances[instance]
                self._forget(copy.model, copy.gpus)
                if isinstance(action, Move):
                    self._target.setdefault(copy.model, []).append(action.gpus)

    def _give_up(self, action: Action) -> None:
        if isinstance(action, Load):
            self._forget(action.model, action.gpus)

    def _forget(self, model: str, gpus: tuple[str, ...]) -> None:
        sets = self._target.get(model, [])
        self._target[model] = [other for other in sets if set(other) != set(gpus)]
