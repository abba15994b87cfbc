"""A policy that unloads at once, loads again after a while, and keeps that for another while.

Shahrad and others, "Serverless in the Wild", USENIX ATC 2020, section 4.2: a pre-warming window `a`
after each request, then a keep-alive window `b`. Policies hear misses, not hits, so this one looks
every `look_s` whether the copy that it keeps was used.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from types import SimpleNamespace

import pytest

from modelium.core import Action, ClusterState, Event, Load, Miss, Phase, Remind, Unload
from modelium.results.record import floats, labels

HAIR_S = 1e-6


class PreWarm:
    """For one model on one GPU."""

    def __init__(self, after_s: float, keep_s: float, look_s: float) -> None:
        self.after_s, self.keep_s, self.look_s = after_s, keep_s, look_s
        self.load_s = self.end_s = float("inf")

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Load when missed or when the time has come; unload what was used or kept long enough."""
        now_s = state.now_s
        [gpu] = state.gpus
        for copy in state.instances.values():
            if copy.phase is not Phase.READY:
                return []
            if not copy.served and now_s < self.end_s - HAIR_S:
                return [Remind(min(now_s + self.look_s, self.end_s), "look again")]
            if copy.busy:
                return [Remind(now_s + HAIR_S, "until it is served")]
            if not copy.served:
                return [Unload(copy.id, "nobody came")]
            self.load_s = copy.last_used_s + self.after_s
            return [Unload(copy.id, "used"), Remind(self.load_s, "load again")]
        if isinstance(event, Miss):
            return [Load(event.model, (gpu,), "missed")]
        if now_s >= self.load_s - HAIR_S:
            self.end_s, self.load_s = self.load_s + self.keep_s, float("inf")
            return [Load("m000", (gpu,), "soon")]
        return []


@pytest.mark.parametrize(
    ("after_s", "keep_s", "cold", "held_s"), [(300.0, 900.0, 0.528805, 282.717)]
)
def test_a_prewarmed_model_is_cold_and_resident_as_often_as_its_windows_say(
    lab: SimpleNamespace, after_s: float, keep_s: float, cold: float, held_s: float
) -> None:
    rate, n, look_s = 1 / 600, 8_000, 10.0
    warm = exp(-rate * after_s) - exp(-rate * (after_s + keep_s))
    assert 1 - warm == pytest.approx(cold, abs=1e-6)
    assert warm / rate == pytest.approx(held_s, abs=1e-3)
    served = lab.play(lab.trace(lab.poisson(rate, n)), PreWarm(after_s, keep_s, look_s))
    assert lab.near(served.cold != "", cold) == ""
    kinds, names = labels(served.run.timeline, "kind")
    rows = kinds == names.index("weights")
    there = floats(served.run.timeline, "end_s") - floats(served.run.timeline, "start_s")
    # What is used stays until the next look, half of `look_s` later on average.
    late_s = warm * look_s / 2
    assert float(there[rows].sum()) / n == pytest.approx(held_s + late_s, abs=4 * 300 / n**0.5)
