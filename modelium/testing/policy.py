"""`check_policy`: what every policy must keep, whatever it decides."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args
from unittest.mock import patch

from modelium.core import (
    Action,
    ClusterState,
    Event,
    Instance,
    Load,
    Move,
    Policy,
    Remind,
    Sleep,
    Unload,
    traits,
)  # fmt: skip
from modelium.testing.assertions import claim
from modelium.testing.scenarios import SCENARIOS, Scenario

CLOCKS = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
    "process_time", "process_time_ns", "thread_time", "sleep",
)  # fmt: skip
DICE = ("random", "choice", "randrange", "randint", "shuffle", "sample", "uniform", "expovariate")


def check_policy(make: Callable[[], Policy]) -> None:
    """Run the policies that `make` returns through small clusters and check their contract.

    Claims: only actions come back, each with a reason that has a number; nothing is done to pinned
    copies, nor to busy ones without `drain`; models are put on GPUs only that they may use; the
    same events and states give the same decisions; no wall clock and no random numbers of the
    process are used; the state is not changed; unknown events are ignored; nobody waits for ever,
    not even for a copy that is never idle (unless the policy has `answers_misses = False`: it
    serves what it chose to, and leaves the rest waiting).
    Raises AssertionError that says which claim is broken, where and when.
    """
    for scenario in SCENARIOS:
        first = _play(scenario, make)
        with _no_clock():
            again = _play(scenario, make)
        where = f"in scenario {scenario.name!r}"
        claim(first == again, f"two runs {where} differ: {_difference(first, again)}")
        _ignores_unknown(scenario, make())


class UnknownEvent:
    """An event of a later version of Modelium."""


def _ignores_unknown(scenario: Scenario, policy: Policy) -> None:
    event: Any = UnknownEvent()
    actions = tuple(policy.decide(scenario.cluster().state, event))
    claim(not actions, f"an unknown event was answered with {actions}; it should be ignored")


def _play(scenario: Scenario, make: Callable[[], Policy]) -> list[tuple[float, Action]]:
    """Let a policy run the scenario to its end, watched; return what it did when."""
    cluster, policy = scenario.cluster(), make()
    log: list[tuple[float, Action]] = []

    def hear(event: Event) -> None:
        where = f"at {cluster.now_s:g} s in scenario {scenario.name!r}, after {event}"
        before, since_s = _books(cluster.state), cluster.now_s
        actions = tuple(policy.decide(cluster.state, event))
        claim(_books(cluster.state) == before, f"decide changed the state {where}")
        for action in actions:
            _check(cluster.state, action, since_s, where)
            log.append((cluster.now_s, action))
            cluster.start(action)

    cluster.listen(hear)
    cluster.begin(traits(policy).every_s)
    scenario.happen(cluster)
    left = cluster.submitted - cluster.finished
    if traits(policy).answers_misses:
        claim(not left, f"{left} requests wait for ever in scenario {scenario.name!r}")
        waited_s, model = cluster.longest_wait_s, cluster.longest_waited
        claim(
            waited_s <= scenario.most_wait_s,
            f"a request for {model} waited {waited_s:.0f} s in scenario {scenario.name!r}: copies "
            f"that are never idle keep it out; drain one once a request has waited long enough",
        )
    return log


def _check(state: ClusterState, action: Action, since_s: float, where: str) -> None:
    claim(isinstance(action, get_args(Action)), f"{action!r} is no action, {where}")
    claim(
        any(letter.isdigit() for letter in action.reason),
        f"{action} has no reason with a number in it, {where}",
    )
    if isinstance(action, Remind):
        claim(action.at_s >= since_s, f"{action} is in the past, {where}")
    if isinstance(action, Load) and (model := state.models.get(action.model)):
        claim(all(map(model.may_use, action.gpus)), f"{action} where it may not be, {where}")
    if isinstance(action, Move) and (copy := state.instances.get(action.instance)):
        may_use = state.models[copy.model].may_use
        claim(all(map(may_use, action.gpus)), f"{action} where it may not be, {where}")
    if isinstance(action, Unload | Sleep) and (copy := state.instances.get(action.instance)):
        claim(not state.models[copy.model].pinned, f"{action} although it is pinned, {where}")
        claim(action.drain or not copy.busy, f"{action} although it is busy, {where}")


def _books(state: ClusterState) -> tuple[Any, ...]:
    """All that a policy could change by accident."""
    copies = [_entry(copy) for copy in state.instances.values()]
    free = [state.free_bytes(gpu) for gpu in state.gpus]
    return copies, free, list(state.models), list(state.gpus), list(state.demand)


def _entry(copy: Instance) -> tuple[Any, ...]:
    return copy.id, copy.gpus, copy.phase, copy.running, copy.waiting, copy.bytes_per_gpu


@contextmanager
def _no_clock() -> Iterator[None]:
    """Make the wall clock and the process's random numbers raise."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(
            "decide read a wall clock or the global random numbers: time is state.now_s, "
            "randomness comes from a random.Random(seed) of the policy's own"
        )

    clocks: dict[str, Any] = dict.fromkeys(CLOCKS, refuse)
    dice: dict[str, Any] = dict.fromkeys(DICE, refuse)
    with patch.multiple(time, **clocks), patch.multiple(random, **dice):
        yield


def _difference(one: list[tuple[float, Action]], two: list[tuple[float, Action]]) -> str:
    for a, b in zip(one, two, strict=False):
        if a != b:
            return f"{a} and {b}"
    return f"{len(one)} and {len(two)} actions"
