"""`modelium compare`: all policies on one trace, and finished runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelium.plugins.registry import names

Run = Callable[..., Any]


def test_a_trace_is_played_under_all_policies_against_what_none_can_exceed(
    modelium: Run, trace: Path
) -> None:
    asked = ("--trace", trace, "--gpus", "h100-80g", "--jobs", 1, "--no-report", "--json")
    said = modelium("compare", *asked)
    assert (said.code, said.err) == (0, "")
    runs = json.loads(said.out)["runs"]
    assert [run["policy"] for run in runs] == names()
    for run in runs:
        assert run["slo_attainment"] <= run["bounds"]["slo_attainment"]
    some = modelium("compare", *asked, "--policy", "lru", "--out", "one")
    assert [run["policy"] for run in json.loads(some.out)["runs"]] == ["lru"]


def test_finished_runs_stand_side_by_side_and_their_differences_are_told(
    modelium: Run, trace: Path
) -> None:
    for out, gpus in (("a", "h100-80g"), ("b", "2xh100-80g")):
        modelium("simulate", "--trace", trace, "--policy", "lru", "--gpus", gpus, "--out", out)
    both = "--policy", "lru", "--policy", "gdsf", "--jobs", 1
    modelium("simulate", "--trace", trace, *both, "--gpus", "h100-80g", "--out", "c")
    said = modelium("compare", "a", "b", "c")
    assert (said.code, said.err) == (0, "")
    for place in ("a", "b", "c/lru", "c/gdsf"):
        assert f"\n  {place} " in said.out
    assert "Differ  GPUs: 1 x h100-80g · 2 x h100-80g" in said.out
    assert said.out.count("Differ") == 1
    told = json.loads(modelium("compare", "a", "c", "--json").out)
    assert told["differ"] == []
    assert [(run["folder"], run["policy"]) for run in told["runs"]] == [
        ("a", "lru"), ("c/lru", "lru"), ("c/gdsf", "gdsf"),
    ]  # fmt: skip


def test_the_same_slo_for_more_models_is_no_difference(modelium: Run, trace: Path) -> None:
    asked = ("simulate", "--trace", trace, "--policy", "lru", "--gpus", "h100-80g", "--no-report")
    for out in ("a", "b"):
        modelium(*asked, "--out", out)
    file = Path("b/summary.json")
    summary = json.loads(file.read_text(encoding="utf-8"))
    for slo, models, differ in ((2.0, 1, 0), (9.0, 3, 1)):
        summary["slos"] = [{**summary["slos"][0], "ttft_s": slo, "models": models}]
        file.write_text(json.dumps(summary), encoding="utf-8")
        told = json.loads(modelium("compare", "a", "b", "--json").out)["differ"]
        assert [line.partition(":")[0] for line in told] == ["SLOs"] * differ


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((), "name a trace to play (--trace FILE), or the folders of finished runs"),
        (("nowhere",), "nowhere: no such folder"),
        (("nowhere", "--seed", "3"), "--seed is for runs to be played, not for finished ones"),
    ],
)
def test_what_makes_no_sense_is_one_line(modelium: Run, asked: tuple[str, ...], words: str) -> None:
    said = modelium("compare", *asked)
    assert said.code == 2
    assert said.err.startswith(f"modelium: {words}")
    assert said.err.count("\n") == 1
