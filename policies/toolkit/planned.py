"""`Planned`: say where every copy should be, now and then. The base of every placement policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from modelium.core import (
    AWAKE,
    Action,
    ClusterState,
    Done,
    Event,
    Load,
    Miss,
    Move,
    Outlook,
    Policy,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.policies.toolkit.diff import Target, diff

Plan = Callable[[ClusterState], Target | Callable[[], Any]]
"""Where each model's copies should be, given everything that is known now.

What takes long returns a function that finds it later, from what was read now: it may run in a
thread, so it must neither read the state nor change anything.
"""
EARLY_S = 1e-6
"""A tick that rounding brings this much early still counts as the next period."""


class _Change(NamedTuple):
    """A copy that left its GPUs, came to others, or both."""

    model: str
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


class Planned:
    """Ask `plan` for a target every `every_s` (None: once) and pursue it until the next plan.

    Between plans `fallback` answers misses, so that nobody waits for the next plan; what it loads
    and evicts becomes part of the target, so that the plan does not undo it. Copies that are not
    in the target leave when their room is needed; with `tidy` they leave anyway. The same holds for
    what is done while a plan is being searched (a `modelium.core.Planner`).
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
        self.sleeps: bool = getattr(fallback, "sleeps", fallback is not None)
        self._plan = plan
        self._fallback = fallback
        self._tidy = tidy
        self._due_s = float("-inf")
        self._target: dict[str, list[tuple[str, ...]]] = {}
        self._since: list[_Change] | None = None
        """What was done since the search began; None if there is none."""
        self._where: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Model and GPUs of each copy."""
        self._told: set[str] = set()
        """Copies that were told to leave or to sleep by this policy, not by an operator."""

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Plan when it is time; else go on towards the target, and let `fallback` react."""
        if isinstance(event, Done) and not event.error:
            self._follow(state, event)
        match event:
            case Tick() if search := self.pose(state):
                return self.adopt(state, search())
            case Done(action, error, instance) if error and not instance:
                self._give_up(action)  # refused: asking again at once would not help
                return self._react(state, event) if isinstance(action, Sleep) else ()
            case Done(action, cancelled=True):
                self._give_up(action)  # until the next plan wants it
            case Miss():
                return self._react(state, event)
        return self._go_on(state, event)

    def outlook(self, state: ClusterState, model: str) -> Outlook | None:
        """What the fallback says: it answers misses, and plans come when they come."""
        tells = getattr(self._fallback, "outlook", None)
        found: Outlook | None = tells(state, model) if tells else None
        return found

    def pose(self, state: ClusterState) -> Callable[[], Any] | None:
        """Return the search for the next plan if one is due; a plan that is cheap is made here."""
        if state.now_s < self._due_s - EARLY_S:
            return None
        self._due_s = state.now_s + (self.every_s or float("inf"))
        self._since = []
        self._where = {copy.id: (copy.model, copy.gpus) for copy in state.instances.values()}
        plan = self._plan(state)
        return plan if callable(plan) else lambda: plan

    def adopt(self, state: ClusterState, thought: Any) -> Iterable[Action]:
        """Pursue the target that was found; changes made since the search began stay."""
        self._target = {model: list(map(tuple, sets)) for model, sets in thought.items()}
        self._catch_up(state, self._since or ())
        self._since = None
        return self._go_on(state, Tick())

    def _go_on(self, state: ClusterState, event: Event) -> Iterable[Action]:
        actions = self.steps(state, self._target, self._tidy)
        self._note(state, actions)
        return actions or self._react(state, event)

    def steps(self, state: ClusterState, target: Target, tidy: bool) -> Sequence[Action]:
        """What to do now on the way to `target`; a policy with more to say overrides it."""
        return diff(state, target, tidy=tidy)

    def _react(self, state: ClusterState, event: Event) -> Iterable[Action]:
        if self._fallback is None:
            return ()
        actions = tuple(self._fallback.decide(state, event))
        self._note(state, actions)
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

    def _follow(self, state: ClusterState, done: Done) -> None:
        """What an operator has unloaded or put to sleep stays so until the next plan."""
        match done.action:
            case Load() | Move() if copy := state.instances.get(done.instance):
                self._where[copy.id] = copy.model, copy.gpus
            case Unload(instance) | Sleep(instance) if instance in self._told:
                self._told.discard(instance)
            case Unload(instance) | Sleep(instance) if instance in self._where:
                self._forget(*self._where[instance])

    def _note(self, state: ClusterState, actions: Iterable[Action]) -> None:
        """Remember what is done, above all while a plan is being searched."""
        self._told.update(a.instance for a in actions if isinstance(a, Unload | Sleep))
        if self._since is not None:
            self._since += [change for action in actions for change in _changes(state, action)]

    def _catch_up(self, state: ClusterState, since: Iterable[_Change]) -> None:
        """Make what was done since the search began part of the plan that it found."""
        for model, old, new in since:
            awake = [set(c.gpus) for c in state.instances_of(model) if c.phase in AWAKE]
            if set(old) not in awake or set(new) in awake:  # else it was refused
                self._forget(model, old)
            wanted = self._target[model]
            if set(new) in awake and set(new) not in map(set, wanted):
                absent = next((sets for sets in wanted if set(sets) not in awake), None)
                if absent:  # the plan wanted one elsewhere
                    wanted.remove(absent)
                wanted.append(new)

    def _give_up(self, action: Action) -> None:
        if isinstance(action, Load):
            self._forget(action.model, action.gpus)

    def _forget(self, model: str, gpus: tuple[str, ...]) -> None:
        sets = self._target.get(model, [])
        self._target[model] = [other for other in sets if set(other) != set(gpus)]


def _changes(state: ClusterState, action: Action) -> list[_Change]:
    match action:
        case Load(model, gpus):
            return [_Change(model, new=gpus)]
        case Wake(instance):
            copy = state.instances[instance]
            return [_Change(copy.model, new=copy.gpus)]
        case Unload(instance) | Sleep(instance):
            copy = state.instances[instance]
            return [_Change(copy.model, old=copy.gpus)]
        case Move(instance, gpus):
            copy = state.instances[instance]
            return [_Change(copy.model, copy.gpus, gpus)]
    return []
