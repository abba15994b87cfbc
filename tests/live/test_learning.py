"""What was measured is used, kept, and never makes a model smaller than its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelium.control.costs import ConfiguredFacts
from modelium.live.engines.calibration import CalibratedCosts, Calibration
from modelium.live.records.journal import Journal
from modelium.testing.fake import FakeCluster
from modelium.testing.scenarios import model, nodes_of
from modelium.units import GIB

A = model("a", 20, overhead_bytes=GIB)


def test_a_duration_is_a_running_mean_that_the_next_run_finds(tmp_path: Path) -> None:
    learnt = Calibration.read(Journal(tmp_path / "j.db"))
    for seconds in (9.0, 12.0, 4.0):
        learnt.took("a", "disk", seconds)
    assert learnt.durations == {("a", "disk"): pytest.approx(8.0)}  # 9, then 10, then 8
    assert Calibration.read(Journal(tmp_path / "j.db")).durations == learnt.durations


def test_a_need_becomes_overhead_and_the_largest_kind_counts(tmp_path: Path) -> None:
    learnt = Calibration.read(Journal(tmp_path / "j.db"))
    assert learnt.corrected(A, {"h100", "l40"}) == A
    learnt.needs_bytes("a", "h100", 33 * GIB)
    learnt.needs_bytes("a", "l40", 35 * GIB)
    assert learnt.corrected(A, {"h100"}).bytes_per_gpu() == 33 * GIB
    assert learnt.corrected(A, {"h100", "l40"}).bytes_per_gpu() == 35 * GIB
    assert learnt.corrected(A, {"a100"}) == A
    learnt.needs_bytes("a", "h100", GIB)  # a driver that tells nonsense
    assert learnt.corrected(A, {"h100"}).overhead_bytes == 0


def test_what_was_learnt_of_a_model_goes_with_it(tmp_path: Path) -> None:
    learnt = Calibration.read(Journal(tmp_path / "j.db"))
    for name in ("a", "b"):
        learnt.took(name, "disk", 9.0)
        learnt.needs_bytes(name, "h100", 33 * GIB)
    learnt.forget("a")
    for now in (learnt, Calibration.read(Journal(tmp_path / "j.db"))):
        assert now.durations == {("b", "disk"): 9.0}
        assert now.needs == {("b", "h100"): 33 * GIB}


def test_costs_are_as_measured_where_they_were(tmp_path: Path) -> None:
    gpus, nodes = nodes_of(1)
    state = FakeCluster([A], gpus, nodes).state
    learnt = Calibration.read(Journal(tmp_path / "j.db"))
    costs = CalibratedCosts(state, ConfiguredFacts(), lambda *request: 1.0, learnt)
    staged = costs.load_s("a", ("n0g0",))
    assert staged > 0.0
    learnt.took("a", "disk", staged + 100.0)
    assert costs.load_s("a", ("n0g0",)) == staged + 100.0
    assert costs.for_state(state).load_s("a", ("n0g0",)) == staged + 100.0


def test_what_sleepers_keep_is_as_measured_and_the_largest_kind_counts(tmp_path: Path) -> None:
    learnt = Calibration.read(Journal(tmp_path / "j.db"))
    learnt.asleep_bytes("a", "h100", 7 * GIB)
    learnt.asleep_bytes("a", "l40", 5 * GIB)
    for now in (learnt, Calibration.read(Journal(tmp_path / "j.db"))):
        assert now.corrected(A, {"h100", "l40"}).asleep_bytes == 7 * GIB
        assert now.corrected(A, {"l40"}).asleep_bytes == 5 * GIB
        assert now.corrected(A, {"a100"}) == A
    learnt.forget("a")
    assert Calibration.read(Journal(tmp_path / "j.db")).asleep == {}
