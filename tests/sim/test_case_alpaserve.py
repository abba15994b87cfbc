"""AlpaServe's simulator and ours agree on every request of a case."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared/cases/alpaserve"


needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason="the reference cases are not beside the project"
)


@needs_cases
def test_every_outcome_and_finish_time_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from case_alpaserve import run

    folders = sorted(f for f in CASES.iterdir() if (f / "placements.json").is_file())
    rows = [row for folder in folders for row in run(folder).rows]
    assert {row.metric for row in rows} >= {"good_count", "outcome_disagreements"}
    assert [row for row in rows if row.ours != row.theirs] == []


@needs_cases
def test_the_order_of_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With requests that come at one instant, too: those are in order of their ids."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from case_alpaserve import run

    folder = tmp_path / "case"
    shutil.copytree(CASES / "A_poisson_16m_8gpu", folder)
    header, *lines = (folder / "trace.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for first, second in zip(cells[::5], cells[1::5], strict=False):
        second[1] = first[1]
    lines = [",".join(each) for each in cells]
    found = []
    for shuffle in (lambda rows: None, Random(5).shuffle):
        shuffle(lines)
        (folder / "trace.csv").write_text("\n".join([header, *lines]) + "\n")
        found.append(run(folder).rows)
    assert found[0] == found[1]
    assert {row.metric for row in found[0]} >= {"good_count", "outcome_disagreements"}
