"""`modelium simulate`: from a trace to tables, a report, and words on the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelium.experiments import experiment
from modelium.results.record import Run as Record

Run = Callable[..., Any]
TABLES = {"requests.parquet", "decisions.parquet", "timeline.parquet", "summary.json"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_run_leaves_one_whole_folder(modelium: Run, trace: Path) -> None:
    said = modelium("simulate", "--trace", trace, "--gpus", "h100-80g", "--policy", "lru")
    assert (said.code, said.err) == (0, "")
    folder = Path("runs/small-lru")
    assert files(folder) == TABLES | {"report.html"}
    assert [path.name for path in Path("runs").iterdir()] == ["small-lru"]
    summary = Record.read(folder).summary
    assert summary["policy"] == "lru"
    assert summary["requests"]["arrived"] == summary["requests"]["completed"] > 100
    assert summary["loads"] > 2
    assert f"Report  {folder / 'report.html'}" in said.out


def test_what_was_assumed_is_said_before_the_numbers(modelium: Run, trace: Path) -> None:
    said = modelium("simulate", "--trace", trace, "--policy", "lru", "--no-report").out
    head, _, table = said.partition("\n\n")
    heads = [line[:8].strip() for line in head.splitlines() if line[:1].strip()]
    assert heads == ["Trace", "Cluster", "Costs", "Assumed", "SLO"]
    words = " ".join(head.split())
    assert "no GPUs given: 1xh100-80g" in words
    assert "90% of each GPU's memory may be used" in words
    assert "not calibrated here" in words
    assert "TTFT <= 2.0 s and TPOT <= 100 ms" in words
    assert table.split()[:3] == ["policy", "SLO", "met"]
    assert max(map(len, said.splitlines())) <= 100


def test_several_policies_and_seeds_give_one_table_and_one_report(
    modelium: Run, trace: Path
) -> None:
    said = modelium(
        "simulate", "--trace", trace, "--gpus", "h100-80g", "--jobs", 1,
        "--policy", "lru", "--policy", "idle_ttl:idle_s=60", "--seed", 0, "--seed", 1,
        "--out", "both", "--json",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    names = ["lru-seed0", "lru-seed1", "idle_ttl-idle_s=60-seed0", "idle_ttl-idle_s=60-seed1"]
    assert files(Path("both")) == {"report.html", "comparison.json"} | {
        f"{name}/{table}" for name in names for table in TABLES
    }
    told = json.loads(said.out)
    assert [run["folder"] for run in told["runs"]] == [f"both/{name}" for name in names]
    assert [(run["policy"], run["seed"]) for run in told["runs"]] == [
        ("lru", 0), ("lru", 1), ("idle_ttl", 0), ("idle_ttl", 1),
    ]  # fmt: skip
    assert told["runs"][2]["policy_parameters"] == {"idle_s": "60"}
    assert json.loads(Path("both/comparison.json").read_text()) == told


def test_every_number_of_the_table_is_in_the_json(modelium: Run, trace: Path) -> None:
    args = ["simulate", "--trace", trace, "--policy", "lru", "--no-report", "--gpus", "h100"]
    table = modelium(*args).out
    told = json.loads(modelium(*args, "--json").out)
    assert told["runs"][0]["folder"] == "runs/small-lru-2"
    assert f"{told['trace']['requests']:,} requests" in " ".join(table.split())
    assert f"{100 * told['runs'][0]['slo_attainment']:.1f}" in table
    assert told["cluster"]["gpus"] == {"h100-80g": 1}
    assert told["report"] == ""


def test_parallel_processes_write_the_same_bytes(modelium: Run, trace: Path) -> None:
    for jobs in (1, 2):
        said = modelium(
            "simulate", "--trace", trace, "--gpus", "h100-80g", "--policy", "lru",
            "--policy", "random", "--jobs", jobs, "--out", f"out{jobs}", "--no-report",
        )  # fmt: skip
        assert said.code == 0
    for name in ("lru", "random"):
        for table in TABLES - {"summary.json"}:
            one, two = (Path(f"out{jobs}/{name}/{table}").read_bytes() for jobs in (1, 2))
            assert one == two


def test_results_are_replaced_only_when_asked(modelium: Run, trace: Path) -> None:
    args = ["simulate", "--trace", trace, "--policy", "lru", "--no-report"]
    assert modelium(*args, "--out", "x").code == 0
    before = Path("x/summary.json").stat().st_ino
    said = modelium(*args, "--out", "x")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("modelium: x exists already")
    assert Path("x/summary.json").stat().st_ino == before
    assert modelium(*args, "--out", "x", "--force").code == 0
    assert Path("x/summary.json").stat().st_ino != before
    Path("mine").mkdir()
    Path("mine/letter").touch()
    assert modelium(*args, "--out", "mine", "--force").code == 2
    assert files(Path("mine")) == {"letter"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a fault in the simulator")])
def test_a_run_that_ends_early_leaves_nothing(
    modelium: Run, trace: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(prepared: Any, jobs: Any, processes: int) -> Any:
        jobs[0].folder.mkdir(exist_ok=True)
        (jobs[0].folder / "requests.parquet").touch()
        raise error

    monkeypatch.setattr(experiment, "play_all", fail)
    args = ["simulate", "--trace", trace, "--policy", "lru", "--out", "runs/x"]
    if isinstance(error, KeyboardInterrupt):
        assert modelium(*args).code == 130
    else:
        with pytest.raises(ValueError, match="a fault"):
            modelium(*args)
    assert files(Path("runs")) == set()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--policy", "gdfs"], "no policy called 'gdfs'. Did you mean 'gdsf'?"),
        (["--policy", "lru", "--policy", "gdfs"], "no policy called 'gdfs'. Did you mean"),
        (["--policy", "lru:x=1"], "policy 'lru' has no parameter 'x'."),
        (["--policy", "lru", "--policy", "lru"], "--policy lru with --seed 0 is there twice"),
        (["--gpus", "4xh10"], "no GPU called 'h10'"),
        (["--gpus", "l4"], "models.phi-4: phi-4 needs"),
        (["--router", "rr"], "no router called 'rr'. Known: least_outstanding"),
        (["--models", "x=phi-4"], "--models x=…: no such model in the trace."),
        (["--config", "none.yaml"], "none.yaml: no such file."),
        (["--trace", "none.csv"], "none.csv"),
        (["--trace", "."], ". is a folder, expected a file"),
        (["--seed", "-1"], "Invalid value for '--seed': -1"),
        (["--policy", "ilp:every_s=-1"], "policy 'ilp': every_s is '-1', expected a duration such"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    modelium: Run, trace: Path, args: list[str], said: str
) -> None:
    ended = modelium("simulate", "--trace", trace, *args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"modelium: {said}")
    assert ended.err.count("\n") == 1
    assert not Path("runs").exists() or files(Path("runs")) == set()


def test_all_policies_are_checked_before_any_is_played(
    modelium: Run, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "play_all", lambda *_: pytest.fail("played"))
    said = modelium("simulate", "--trace", trace, "--policy", "lru", "--policy", "lfu:x=1")
    assert "policy 'lfu' has no parameter 'x'" in said.err


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "raises",
            r"raised KeyError: 'phi' in .*/wrong_policies\.py, line 3 \(at .* s, asked about",
        ),
        ("nothing", r"answered None, expected actions, or \(\) \(at 0 s, asked about Tick\(\)\)"),
        ("number", r"answered 42, which is no action \(at 0 s, asked about Tick\(\)\)"),
    ],
)
def test_a_policy_that_is_wrong_is_told_in_a_line_and_leaves_nothing(
    modelium: Run, trace: Path, plugins: None, name: str, said: str, jobs: int
) -> None:
    args = ["simulate", "--trace", trace, "--gpus", "h100", "--jobs", jobs, "--policy", "lru"]
    ended = modelium(*args, "--policy", name)
    assert (ended.code, ended.out) == (2, "")
    assert re.match(f"modelium: policy '{name}' {said}", ended.err)
    assert ended.err.count("\n") == 1
    assert files(Path("runs")) == set()


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three policies of another package, installed for this process and for its children."""
    place = tmp_path / "wrong"
    about = place / "wrong_policies-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-policies\nVersion: 1\n")
    names = ("raises", "nothing", "number")
    lines = [f"{name} = wrong_policies:{name.title()}" for name in names]
    (about / "entry_points.txt").write_text("\n".join(["[modelium.policies]", *lines]))
    (place / "wrong_policies.py").write_text(WRONG)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))


WRONG = """class Raises:
    def decide(self, state, event):
        yield {}["phi"]

class Nothing:
    def decide(self, state, event): pass

class Number:
    def decide(self, state, event): return [42]
"""


def test_a_mistake_that_only_the_whole_configuration_shows_is_told_with_its_file(
    modelium: Run, trace: Path
) -> None:
    Path("own.yaml").write_text("orchestration: {always_loaded: [phi-5]}")
    said = modelium("simulate", "--trace", trace, "--config", "own.yaml")
    assert said.err.startswith("modelium: own.yaml: orchestration.always_loaded: no model called")


def test_a_model_that_the_configuration_does_not_know_is_named_with_its_row(
    modelium: Run, trace: Path
) -> None:
    Path("modelium.yaml").write_text("models: [phi-4, qwen3-14b]\ncluster: {gpus: h100}\n")
    said = modelium("simulate", "--trace", trace)
    assert said.code == 2
    assert f"{trace}, row " in said.err
    assert "no model called 'qwen2.5-14b' in modelium.yaml. Did you mean" in said.err


def test_the_configuration_decides_what_the_command_line_leaves_open(
    modelium: Run, trace: Path
) -> None:
    Path("modelium.yaml").write_text(
        """
        cluster: {gpus: 2xh100-80g}
        policy: idle_ttl
        orchestration: {auto_unload_after_seconds: 90, min_qps_threshold: 0.2,
                        decision_interval_seconds: 5, always_loaded: [phi-4]}
        models: {qwen2.5-14b: , qwen3-14b: , phi-4: {slo: {ttft: 1s}}}
        simulation: {router: round_robin}
        """
    )
    told = json.loads(modelium("simulate", "--trace", trace, "--no-report", "--json").out)
    (run,) = told["runs"]
    assert run["policy"] == "idle_ttl"
    assert run["policy_parameters"] == {"idle_s": "90.0", "qps_min": "0.2", "check_s": "5.0"}
    assert len(run["gpus"]) == 2
    assert told["cluster"]["config"] == "modelium.yaml"
    assert run["per_model"]["phi-4"]["cold_starts"] == 0
    args = ["--policy", "idle_ttl:idle_s=10", "--gpus", "h100-80g", "--no-report", "--json"]
    (run,) = json.loads(modelium("simulate", "--trace", trace, *args).out)["runs"]
    assert run["policy_parameters"]["idle_s"] == "10"
    assert len(run["gpus"]) == 1


def test_models_of_the_trace_can_be_given_by_name(modelium: Run, trace: Path) -> None:
    args = ["--policy", "lru", "--no-report", "--json", "--models", "phi-4=qwen2.5-0.5b"]
    told = json.loads(modelium("simulate", "--trace", trace, *args).out)
    whole = json.loads(modelium("simulate", "--trace", trace, *args[:-2]).out)
    assert told["cluster"]["weights_bytes"] < whole["cluster"]["weights_bytes"]


def test_bounds_are_told_when_asked_for(modelium: Run, trace: Path) -> None:
    args = ["simulate", "--trace", trace, "--gpus", "h100-80g", "--policy", "lru"]
    assert "gap to bound" not in modelium(*args, "--no-report", "--out", "without").out
    assert "bounds" not in Record.read(Path("without")).summary
    assert "gap to bound" in modelium(*args, "--bounds", "--out", "with").out
    summary = Record.read(Path("with")).summary
    bounds = summary["bounds"]
    assert set(bounds) == {"slo_attainment", "goodput_per_s", "alone", "without_sleep"}
    assert summary["slo_attainment"] <= bounds["without_sleep"] <= bounds["slo_attainment"]
    assert bounds["slo_attainment"] <= bounds["alone"] <= 1.0
    assert summary["goodput_per_s"] <= bounds["goodput_per_s"]
    page = Path("with/report.html").read_text(encoding="utf-8")
    assert "No policy can exceed" in page
    assert "No bound was computed" not in page
    args += ["--policy", "random", "--jobs", 2, "--bounds", "--json", "--no-report"]
    told = json.loads(modelium(*args, "--out", "both").out)
    assert [run["bounds"] for run in told["runs"]] == [bounds, bounds]
