"""`modelium report`, `check` and `init`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelium.config import Config, read

Run = Callable[..., Any]


def test_init_writes_a_valid_file_once(modelium: Run) -> None:
    assert modelium("init").code == 0
    assert read(Path("modelium.yaml")).cluster.gpus[0].count == 4
    Path("modelium.yaml").write_text("slo: {}\n")
    said = modelium("init")
    assert (said.code, said.err) == (
        2, "modelium: modelium.yaml exists already; --force overwrites it\n",
    )  # fmt: skip
    assert Path("modelium.yaml").read_text() == "slo: {}\n"
    assert modelium("init", "--force").code == 0
    assert yaml.safe_load(Path("modelium.yaml").read_text())["cluster"]


def test_init_elsewhere_and_where_nothing_can_be_written(modelium: Run) -> None:
    assert modelium("init", "other.yaml").code == 0
    assert Path("other.yaml").is_file()
    said = modelium("init", "no/such/folder.yaml")
    assert (said.code, said.out) == (2, "")
    assert "no/such/folder.yaml: cannot be written: No such file" in said.err


def test_init_prints_the_schema_and_writes_nothing(modelium: Run) -> None:
    said = modelium("init", "--schema")
    assert set(json.loads(said.out)["properties"]) == set(Config.model_fields)
    assert not Path("modelium.yaml").exists()


def test_check_says_that_all_is_well(modelium: Run) -> None:
    modelium("init")
    said = modelium("check")
    assert (said.code, said.err) == (0, "")
    lines = {line.split()[1]: line.split()[0] for line in said.out.splitlines()}
    assert lines["python"] == lines["packages"] == lines["config"] == "ok"
    assert "modelium.yaml: 4 GPUs, 2 models" in said.out


def test_check_lists_every_problem_of_the_configuration(modelium: Run) -> None:
    Path("bad.yaml").write_text("slo: 3\nmodels: {a: {gpus: none}}\n")
    said = modelium("check", "--config", "bad.yaml", "--json")
    assert said.code == 2
    wrong = [found for found in json.loads(said.out) if found["verdict"] == "wrong"]
    assert [found["what"] for found in wrong] == ["config", "config"]
    assert [found["says"].split(": ")[1] for found in wrong] == ["models.a.gpus", "slo"]


@pytest.mark.parametrize("text", ["models: [lama-3.1-8b]", "models: [llama-3.1-405b]"])
def test_check_finds_what_only_the_whole_configuration_shows(modelium: Run, text: str) -> None:
    Path("bad.yaml").write_text(f"cluster: {{gpus: l4}}\n{text}\n")
    said = modelium("check", "--config", "bad.yaml")
    assert said.code == 2
    assert "wrong config" in said.out


def test_report_is_built_again_for_one_run_or_several(modelium: Run, trace: Path) -> None:
    modelium(
        "simulate", "--trace", trace, "--policy", "lru", "--policy", "lfu", "--jobs", 1,
        "--out", "x",
    )  # fmt: skip
    first = Path("x/report.html").read_text()
    Path("x/report.html").unlink()
    said = modelium("report", "x")
    assert (said.code, said.out) == (0, "x/report.html\n")
    assert Path("x/report.html").read_text() == first
    assert modelium("report", "x/lru").out == "x/lru/report.html\n"
    said = modelium("report", "x/lfu", "x/lru", "--out", "two.html")
    assert (said.code, said.out) == (0, "two.html\n")
    page = Path("two.html").read_text()
    assert page.index("lfu") < page.index("lru")


def test_report_of_what_is_no_run_is_one_line(modelium: Run) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "absent"):
        said = modelium("report", folder)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(f"modelium: {folder}")
        assert said.err.count("\n") == 1
    assert list(Path("empty").iterdir()) == []
