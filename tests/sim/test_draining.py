"""Busy copies make way: when, for whom and how often, by hand on one and two GPUs."""

from __future__ import annotations

import numpy as np
import pytest

from modelium.control.costs import Stages
from modelium.core import Limits
from modelium.policies.gdsf import Gdsf
from modelium.policies.lru import Lru
from modelium.policies.toolkit.on_demand import OnDemand
from modelium.sim.spec import Infer, Settings
from tests.sim.conftest import Served, play, trace

BATCHED = Infer(((1.0, 1.0, 1.0, 1.0),))
"""Up to four requests a second: with one each 0.9 s it never falls idle, and keeps up."""
LOAD_S, UNLOAD_S = 20.0, 2.0
PART_S = LOAD_S + UNLOAD_S
"""What it costs that one copy leaves and comes back."""
STAGES = Stages(LOAD_S, 0.0, 0.0, 0.0, 0.0, 0.0, unload_s=UNLOAD_S)
EMPTY = Settings(limits=Limits(), prepared=False, drain_s=1e6)
APART_S = 0.9
DRAIN_S = 2.0
"""At most: the batch under way, and one of what had come meanwhile."""


def overlapping(models: list[int], until_s: float, *others: tuple[float, int]) -> Served:
    """Models that are always asked from the start, and single requests (when, model)."""
    return served(Lru(), models, until_s, *others)


def served(
    policy: OnDemand, models: list[int], until_s: float, *others: tuple[float, int], gpus: int = 1
) -> Served:
    arrivals = [(k * APART_S, m) for m in models for k in range(int(until_s / APART_S))]
    asked = sorted([*arrivals, *others])
    times, numbers = zip(*asked, strict=True)
    return play(
        trace(times, numbers),
        policy,
        BATCHED,
        gpu_bytes=[1] * gpus,
        stages=STAGES,
        settings=EMPTY,
    )


def loads(run: Served, model: str = "") -> list[float]:
    """When loads of a model were decided."""
    rows = run.run.decisions.to_pylist()
    return [row["at_s"] for row in rows if row["kind"] == "load" and model in ("", row["model"])]


def test_a_request_waits_as_long_as_its_swap_costs_and_then_a_busy_copy_is_drained() -> None:
    asked_s = 200.0
    run = overlapping([0], 600.0, (asked_s, 1))
    [drained_s] = loads(run, "m001")
    assert drained_s == pytest.approx(asked_s + LOAD_S + PART_S, abs=1e-3)
    [begun_s] = run.first_s[run.arrival_s == asked_s]
    drain_s = begun_s - 1.0 - drained_s - PART_S
    assert 0.0 <= drain_s <= DRAIN_S
    assert not np.isnan(run.finish_s).any()
    # What the other one is asked meanwhile gets its turn as soon as this one has had its own.
    assert loads(run, "m000")[1] == pytest.approx(begun_s, abs=1e-3)


def test_a_copy_that_was_just_brought_in_keeps_its_time_slice() -> None:
    run = overlapping([0], 600.0, (LOAD_S + 1.0, 1))
    [drained_s] = loads(run, "m001")
    assert drained_s == pytest.approx(LOAD_S + 4 * PART_S, abs=1e-3)


def test_two_models_that_are_always_busy_take_turns_and_swaps_take_their_share_at_most() -> None:
    run = overlapping([0, 1], 3600.0)
    turns = np.diff([at for at in loads(run) if at < 3400.0])[1:]
    assert len(turns) > 20
    assert turns.min() >= 5 * PART_S - 1e-3  # one part for the swap, and four of time slice
    assert turns.max() <= 5 * PART_S + DRAIN_S
    assert PART_S / turns.mean() <= 0.2
    # Who comes just after its copy was told to leave waits for two drains, two swaps, one slice.
    waits = run.first_s - 1.0 - run.arrival_s
    assert waits.max() <= 2 * (DRAIN_S + PART_S) + 4 * PART_S


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_share_of_swaps_is_a_parameter(share: float) -> None:
    run = served(Gdsf(swap_share=share), [0, 1], 3600.0)
    turns = np.diff([at for at in loads(run) if at < 3000.0])[1:]
    assert 0.9 * share <= PART_S / turns.mean() <= share


def test_without_it_the_other_model_waits_until_nobody_asks_any_more() -> None:
    run = served(Lru(drain_after_s=float("inf")), [0], 600.0, (50.0, 1))
    assert loads(run, "m001")[0] >= 600.0


def test_of_many_that_wait_the_oldest_goes_first() -> None:
    run = overlapping([0], 1000.0, (300.0, 1), (301.0, 2), (302.0, 3))
    first = [loads(run, f"m00{k}")[0] for k in (1, 2, 3)]
    assert first == sorted(first)
    assert first[0] == pytest.approx(300.0 + LOAD_S + PART_S, abs=1e-3)
