"""AlpaServe's simulator and ours agree on every request of a case."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared/cases/alpaserve"


@pytest.mark.skipif(not CASES.is_dir(), reason="the reference cases are not beside the project")
def test_every_outcome_and_finish_time_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from case_alpaserve import run

    folders = sorted(f for f in CASES.iterdir() if (f / "placements.json").is_file())
    rows = [row for folder in folders for row in run(folder).rows]
    assert {row.metric for row in rows} >= {"good_count", "outcome_disagreements"}
    assert [row for row in rows if row.ours != row.theirs] == []
