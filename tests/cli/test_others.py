"""`modelium report`, `check` and `init`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelium.config import Config, read
from modelium.config.values import keys

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
    assert set(json.loads(said.out)["properties"]) == keys(Config).keys()
    assert not Path("modelium.yaml").exists()


def test_check_says_that_all_is_well(modelium: Run) -> None:
    modelium("init")
    said = modelium("check")
    assert (said.code, said.err) == (0, "")
    lines = {line.split()[1]: line.split()[0] for line in said.out.splitlines()}
    assert lines["python"] == lines["packages"] == lines["config"] == "ok"
    assert "modelium.yaml: 4 GPUs, 2 models" in said.out


def engine(folder: Path, program: str, package: str) -> Path:
    """An environment that looks as if it held an engine."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / program).touch(mode=0o755)
    (folder / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info").mkdir(parents=True)
    return folder


def test_check_tells_where_engines_are(
    modelium: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MODELIUM_VLLM_ENV", raising=False)
    engine(Path(".engines") / "vllm", "vllm", "vllm-0.9.1")
    monkeypatch.setenv("MODELIUM_RAY_ENV", "gone")
    Path("live.yaml").write_text("triton: {url: 'http://far:8000', repository: x}\n")
    said = modelium("check", "--config", "live.yaml", "--json")
    assert said.code == 2, "what is named has to be there"
    found = {one["what"]: (one["verdict"], one["says"]) for one in json.loads(said.out)}
    program = Path(".engines/vllm/bin/vllm").absolute()
    assert found["vllm"] == ("ok", f"vllm 0.9.1 at {program}")
    assert found["triton"] == ("ok", "the server at http://far:8000 is used")
    assert found["ray"][0] == "wrong"
    assert "$MODELIUM_RAY_ENV for ray: gone has no bin/ray" in found["ray"][1]

    monkeypatch.delenv("MODELIUM_RAY_ENV")
    Path("live.yaml").write_text("vllm: {enabled: false}\n")
    said = modelium("check", "--config", "live.yaml", "--json")
    found = {one["what"]: (one["verdict"], one["says"]) for one in json.loads(said.out)}
    assert said.code == 0, "nobody named Ray: it may be missing"
    assert found["ray"][0] == found["triton"][0] == "note"
    assert found["vllm"] == ("note", "switched off in the configuration")


def test_check_looks_at_the_live_folder(modelium: Run) -> None:
    Path("live.yaml").write_text("live: {folder: new/journal}\n")
    said = modelium("check", "--config", "live.yaml")
    assert f"ok    live folder {Path('new/journal').absolute()} can be written" in said.out
    assert not Path("new").exists(), "it is looked at, not made"
    Path("taken").touch()
    Path("live.yaml").write_text("live: {folder: taken/journal}\n")
    said = modelium("check", "--config", "live.yaml")
    assert said.code == 2
    assert "wrong live folder" in said.out


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
