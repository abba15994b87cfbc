"""Every built-in policy keeps the contract, and the suite notices those that do not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

import pytest

from modelium.core import (
    Action,
    ClusterState,
    Event,
    Fault,
    Load,
    Miss,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
)  # fmt: skip
from modelium.plugins.registry import make_policy, names
from modelium.policies.lru import Lru
from modelium.testing import check_policy

TOLD = {"belady_cost"}
"""Needs a trace; tested below."""
VARIANTS = [
    "lru:place=best_fit",
    "lru:place=first_fit,sleep_level=1",
    "lru:sleep_level=2",
    "lru:drain_after_s=30",
    "lru:max_replicas=2,scale_waiting=1",
    "lfu:in_cache=yes",
    "gdsf:variant=gds",
    "gdsf:variant=freq",
    "landlord:renewal=0.5",
    "idle_ttl:idle_s=20,qps_min=inf",
    "idle_ttl:idle_s=40,sleep_s=10,qps_min=inf,sleep_level=2",
    "ffd:every_s=30",
    "bfd:every_s=30,rho_max=0.5",
]


@pytest.mark.parametrize("text", [n for n in names() if n not in TOLD] + VARIANTS)
def test_built_in_policies_conform(text: str) -> None:
    check_policy(lambda: make_policy(text, rng_seed=1))


def test_a_clairvoyant_policy_conforms() -> None:
    from modelium.policies.belady_cost import BeladyCost

    check_policy(lambda: BeladyCost({"a": [10.0, 50.0], "b": [70.0]}))


def test_a_policy_that_returns_a_generator_conforms() -> None:
    class Lazy(Lru):
        def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
            yield from super().decide(state, event)

    check_policy(Lazy)


class Spoilt(Lru):
    """A policy that does one thing wrong."""

    def spoil(self, state: ClusterState, event: Event, actions: list[Action]) -> list[Action]:
        raise NotImplementedError

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        return self.spoil(state, event, list(super().decide(state, event)))


def _busy(state: ClusterState) -> list[str]:
    return [c.id for c in state.instances.values() if c.busy and c.phase is Phase.READY]


class NoReason(Spoilt):
    def spoil(self, state, event, actions):
        return [Load(a.model, a.gpus) if isinstance(a, Load) else a for a in actions]


class EvictsBusy(Spoilt):
    def spoil(self, state, event, actions):
        return [Unload(busy, "because 1") for busy in _busy(state)] + actions


class SleepsBusy(Spoilt):
    def spoil(self, state, event, actions):
        return [Sleep(busy, 1, "because 1") for busy in _busy(state)] + actions


class UnloadsPinned(Spoilt):
    def spoil(self, state, event, actions):
        pinned = [c.id for c in state.instances.values() if state.models[c.model].pinned]
        return actions + [Unload(instance, "because 1", drain=True) for instance in pinned]


class ReadsTheClock(Spoilt):
    def spoil(self, state, event, actions):
        time.monotonic()
        return actions


class RollsDice(Spoilt):
    def spoil(self, state, event, actions):
        random.random()
        return actions


class Fickle(Spoilt):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        Fickle.made += 1
        self.odd = Fickle.made % 2

    def spoil(self, state, event, actions):
        later = Remind(state.now_s + 1 + self.odd, "because 1")
        return [*actions, later] if isinstance(event, Miss) else actions


class Forgetful(Spoilt):
    def spoil(self, state, event, actions):
        return [a for a in actions if not (isinstance(a, Load) and a.model == "c")]


class Meddles(Spoilt):
    def spoil(self, state, event, actions):
        for copy in state.instances.values():
            copy.bytes_per_gpu += 1
        return actions


class SaysNonsense(Spoilt):
    def spoil(self, state, event, actions):
        return [*actions, "load 1 more"]


class Trespasses(Spoilt):
    def spoil(self, state, event, actions):
        bound = [m for m in state.models.values() if m.gpus_allowed is not None]
        wrong = [(m.name, gpu) for m in bound for gpu in state.gpus if not m.may_use(gpu)]
        return [*actions, *(Load(name, (gpu,), "because 1") for name, gpu in wrong)]


class FearsTheUnknown(Spoilt):
    def spoil(self, state, event, actions):
        known = isinstance(event, Miss | Tick | Fault) or type(event).__name__ == "Done"
        return actions if known else [Unload("all 7", "because 1")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (NoReason, "no reason with a number"),
        (EvictsBusy, "although it is busy"),
        (SleepsBusy, "although it is busy"),
        (UnloadsPinned, "although it is pinned"),
        (ReadsTheClock, "wall clock"),
        (RollsDice, "random numbers"),
        (Fickle, "differ"),
        (Forgetful, "wait for ever"),
        (Meddles, "changed the state"),
        (SaysNonsense, "is no action"),
        (FearsTheUnknown, "unknown event"),
        (Trespasses, "where it may not be"),
    ],
)
def test_the_suite_finds_each_breach(make: Callable[[], Spoilt], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_policy(make)
