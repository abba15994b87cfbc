import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from modelium.core import Decision
from modelium.errors import RecordError
from modelium.results.record import (
    COLD,
    OUTCOMES,
    SUMMARY_KEYS,
    Run,
    decisions_table,
    labels,
    requests_table,
    timeline_table,
)

FILES = ["decisions.parquet", "requests.parquet", "summary.json", "timeline.parquet"]


def columns(n=3):
    none = np.zeros(n, np.int32)
    return {
        "arrival_s": np.arange(n, dtype=float),
        "model": (np.arange(n) % 2, ["a", "b"]),
        "prompt_tokens": none + 5,
        "output_tokens": none + 2,
        "outcome": (none, OUTCOMES),
        "instance": (none - 1, ["a#0"]),
        "first_token_s": np.full(n, np.nan),
        "finish_s": np.full(n, np.nan),
        "cold": (none, COLD),
        "preemptions": none,
        "cached_tokens": none,
        "retries": none,
        "slo_met": np.zeros(n, bool),
    }


@pytest.fixture
def run():
    load = Decision(0.5, "load", "a", "a#0", ("g0", "g1"), "because", 2.0, "", "disk", {"x": 1.5})
    rows = [("g0", 0.5, 2.0, "loading", "a", "a#0", 7e9), ("g0", 0.0, 3.0, "busy", "", "", 0.5)]
    return Run(
        dict.fromkeys(SUMMARY_KEYS) | {"policy": "lru"},
        requests_table(columns()),
        decisions_table([load]),
        timeline_table(rows),
    )


def test_a_run_read_back_is_the_run_written(run, tmp_path):
    run.write(tmp_path / "deep" / "out")
    again = Run.read(tmp_path / "deep" / "out")
    assert again.summary == run.summary
    for name in ("requests", "decisions", "timeline"):
        before, after = getattr(run, name), getattr(again, name)
        assert after.schema.equals(before.schema)
        assert repr(after.to_pylist()) == repr(before.to_pylist())  # repr: NaN is NaN
    assert again.decisions.to_pylist()[0]["gpus"] == "g0 g1"
    assert json.loads(again.decisions.to_pylist()[0]["stages"]) == {"x": 1.5}
    assert again.requests["instance"].null_count == 3


def test_the_folder_holds_the_four_files_and_the_report_where_given(run, tmp_path):
    run.write(tmp_path / "a")
    run.write(tmp_path / "b", report_html="<p>é</p>")
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == FILES
    assert (tmp_path / "b" / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    run.write(tmp_path / "a")
    run.write(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_with_no_requests_and_no_actions_survives(tmp_path):
    run = Run(
        dict.fromkeys(SUMMARY_KEYS),
        requests_table(columns(0)),
        decisions_table([]),
        timeline_table([]),
    )
    run.write(tmp_path / "out")
    assert Run.read(tmp_path / "out").timeline.num_rows == 0
    codes, names = labels(run.decisions, "model")
    assert (len(codes), names) == (0, [])


def test_an_interrupted_write_leaves_nothing(run, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyarrow.parquet.write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        run.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_nothing_that_reads_as_a_run(run, tmp_path):
    run.write(tmp_path / "given")
    code = """
        import os, sys
        from pathlib import Path
        from modelium.results.record import Run
        given, out = map(Path, sys.argv[1:])
        Path.rename = lambda *_: os._exit(9)
        Run.read(given).write(out)
    """
    script = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run([*script, tmp_path / "given", tmp_path / "out"], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_refused_unless_it_is_a_run_to_replace(run, tmp_path):
    run.write(tmp_path / "out")
    with pytest.raises(RecordError, match="exists already"):
        run.write(tmp_path / "out")
    run.summary["policy"] = "new"
    run.write(tmp_path / "out", replace=True)
    assert Run.read(tmp_path / "out").summary["policy"] == "new"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(RecordError, match="not the folder of a run"):
        run.write(tmp_path / "home", replace=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["home", "out"]


def test_an_unwritable_place_is_a_record_error(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="cannot write"):
        run.write(tmp_path / "file" / "out")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run, tmp_path, name):
    run.write(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(RecordError, match=f"no {name}"):
        Run.read(tmp_path / "out")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(run, tmp_path, name):
    run.write(tmp_path / "out")
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RecordError, match=name):
        Run.read(tmp_path / "out")


def test_a_missing_column_and_a_wrong_one_are_named(run, tmp_path):
    import pyarrow.parquet as pq

    run.write(tmp_path / "out")
    file = tmp_path / "out" / "requests.parquet"
    pq.write_table(run.requests.drop_columns(["slo_met", "cold"]), file)
    with pytest.raises(RecordError, match=r"requests\.parquet: no column cold, slo_met"):
        Run.read(tmp_path / "out")
    texts = run.requests.set_column(0, "arrival_s", [["one", "two", "three"]])
    pq.write_table(texts, file)
    with pytest.raises(RecordError, match=r"arrival_s is string, expected float64"):
        Run.read(tmp_path / "out")


def test_no_folder_and_a_summary_of_something_else_are_record_errors(run, tmp_path):
    with pytest.raises(RecordError, match="no such folder"):
        Run.read(tmp_path / "nowhere")
    run.write(tmp_path / "out")
    for text, why in (("[1]", "not a JSON object"), ('{"policy": 1}', "no 'policy_parameters'")):
        (tmp_path / "out" / "summary.json").write_text(text)
        with pytest.raises(RecordError, match=why):
            Run.read(tmp_path / "out")


def test_tables_refuse_missing_unknown_and_short_columns():
    short = columns()
    del short["cold"]
    with pytest.raises(ValueError, match="cold"):
        requests_table(short)
    with pytest.raises(ValueError, match="colour"):
        requests_table(columns() | {"colour": [1, 2, 3]})
    with pytest.raises(ValueError, match="length"):
        requests_table(columns() | {"arrival_s": np.zeros(2)})


def test_optional_columns_are_kept():
    table = requests_table(columns() | {"slo_class": (np.array([0, -1, 1]), ["gold", "tin"])})
    assert table["slo_class"].to_pylist() == ["gold", None, "tin"]
