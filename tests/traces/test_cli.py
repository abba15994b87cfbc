"""`modelium trace …` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from modelium.cli.trace.group import trace as group
from modelium.errors import ConfigError, TraceError
from modelium.traces import read_trace


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(arg) for arg in args], catch_exceptions=False)


def made(folder: Path, *args: object, name: str = "t.csv") -> Path:
    path = folder / name
    result = run("generate", "--models", "3", "--duration", "10min", *args, "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_generate_writes_a_trace_and_says_so(tmp_path):
    path = tmp_path / "t.parquet"
    result = run("generate", "--models", "a,b", "--rate", "2", "--duration", "10min", "-o", path)
    assert result.stdout == ""
    trace = read_trace(path)
    assert result.stderr == f"{path}: {len(trace):,} requests, 2 models\n"
    assert abs(len(trace) - 1200) < 4 * np.sqrt(1200)


def test_generate_takes_every_law(tmp_path):
    lengths = made(tmp_path, name="lengths.csv")
    law = ["--zipf", 1.5, "--shuffle", "--cv", 2, "--day-swing", 0.5, "--day-peak", 1]
    bursts = ["--bursts", "on_s=1min,off_s=2min,quiet=0.1,groups=2,together=0.5"]
    trace = read_trace(made(tmp_path, *law, *bursts, "--lengths", lengths, "--time-digits", 1))
    assert set(trace.prompt_tokens.tolist()) <= set(read_trace(lengths).prompt_tokens.tolist())
    assert trace.arrival_s.tolist() == np.round(trace.arrival_s, 1).tolist()


def test_generate_again_gives_the_same_bytes(tmp_path):
    first, second = (made(tmp_path, "--seed", 5, name=n) for n in ("a.csv.gz", "b.csv.gz"))
    assert first.read_bytes() == second.read_bytes()


def test_models_come_from_a_file_too(tmp_path):
    names = tmp_path / "models.txt"
    names.write_text("phi-4\n\nmistral-7b\n")
    path = tmp_path / "t.csv"
    run("generate", "--models", names, "-o", path)
    assert read_trace(path).model.names == ("mistral-7b", "phi-4")


def test_many_long_names_are_not_taken_for_a_file(tmp_path):
    names = [f"{'x' * 40}-{i}" for i in range(12)]
    path = tmp_path / "t.csv"
    run("generate", "--models", ",".join(names), "-o", path)
    assert set(read_trace(path).model.names) == set(names)


def test_info_prints_a_table_and_the_same_as_json(tmp_path):
    path = made(tmp_path)
    table, figures = run("info", path), json.loads(run("info", path, "--json").stdout)
    n = len(read_trace(path))
    assert figures["requests"] == n
    assert f"{n:,}" in table.stdout
    for key in ("span_s", "rate_per_s", "cv", "model_cv", "skew", "idle", "prompt_tokens"):
        assert figures[key] is not None
    assert set(figures["skew"]) >= {"top1", "top10_percent", "bottom50_percent", "zipf"}


def test_info_says_what_reading_assumed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n2,a,1,1\n1,a,1,1\n")
    assert run("info", path).stderr.count("was not in order of arrival") == 1
    assert "was not in order" in json.loads(run("info", path, "--json").stdout)["notes"][0]


def test_info_draws(tmp_path):
    path, picture = made(tmp_path), tmp_path / "p.png"
    assert run("info", path, "--picture", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_convert_reads_any_format(tmp_path):
    log = tmp_path / "code.csv"
    log.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,48,10\n")
    out = tmp_path / "own.parquet"
    assert run("convert", log, "--model", "phi-4", "-o", out).exit_code == 0
    assert read_trace(out).model.values() == ["phi-4"]
    assert (
        run("convert", log, "--lengths", "prompt_limit=1,output_limit=1", "-o", out).exit_code == 0
    )
    assert read_trace(out).prompt_tokens.tolist() == [1]


def test_transform_takes_its_steps_in_the_stated_order(tmp_path):
    path, out = made(tmp_path, "--rate", 5), tmp_path / "out.csv"
    steps = ["--cut", "1min,9min", "--map-to", "x,y", "--rate", 0.5, "--speed", 2, "--sample", 300]
    assert run("transform", path, *steps, "-o", out).exit_code == 0
    trace = read_trace(out)
    assert len(trace) == 300
    assert trace.model.names == ("x", "y")
    assert trace.span_s < 8 * 60 / 2


def test_transform_merges_files(tmp_path):
    one, two = made(tmp_path, name="1.csv"), made(tmp_path, "--seed", 1, name="2.csv")
    run("transform", one, two, "-o", tmp_path / "both.csv")
    assert len(read_trace(tmp_path / "both.csv")) == len(read_trace(one)) + len(read_trace(two))


def test_transform_redraws_a_slice(tmp_path):
    path, out = made(tmp_path, "--rate", 5), tmp_path / "out.csv"
    args = ["--split", "5min", "--part", "test", "--resample", "1min", "--cv", 2, "--spread", "1s"]
    assert run("transform", path, *args, "-o", out).exit_code == 0
    assert 0 < read_trace(out).span_s <= 300.0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--cut", "1min"], "expected two times"),
        (["--split", "1min"], "--split and --part go together"),
        (["--cv", "2"], "--cv needs --resample"),
        (["--lengths", "promt_mean=3"], "Did you mean 'prompt_mean'"),
        (["--lengths", "prompt_mean=x"], "prompt_mean is 'x', expected a number"),
        (["--lengths", "prompt_limit=1.5"], "prompt_limit is '1.5', expected a whole number"),
        (["--lengths", "prompt_mean=0"], "prompt_mean is 0, expected 0.001 to"),
        (["--lengths", "output_mean=nan"], "output_mean is nan, expected"),
        (["--lengths", "prompt_cv=-1"], "prompt_cv is -1, expected 0 to 100"),
        (["--lengths", "output_limit=0"], "output_limit is 0, expected 1 to"),
        (["--map-to", "a,,b"], "empty name"),
        (["--map-to", "0"], "0 models, expected 1 to 1,000,000"),
        (["--map-to", "-3"], "-3 models, expected 1 to 1,000,000"),
        (["--map-how", "popularity"], "need --map-to"),
        (["--map-by", "model"], "need --map-to"),
        (["--resample", "1min", "--cv", "0"], "all must be above 0"),
        (["--resample", "inf"], "finite"),
        (["--spread", "inf"], "and an end"),
        (["--speed", "1e-308"], "leaves times finite"),
        (["--cut", "5h,6h"], "no request arrives between"),
    ],
)
def test_a_wrong_option_is_one_error_and_writes_nothing(tmp_path, args, expected):
    path, out = made(tmp_path), tmp_path / "out.csv"
    with pytest.raises((ConfigError, TraceError), match=expected):
        run("transform", path, *args, "-o", out)
    assert not out.exists()


def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "prod.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n1,a,12a,1\n")
    code = "import sys; from modelium.cli import main; sys.argv[0] = 'modelium'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "info", path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"modelium: {path}, row 1: prompt_tokens is '12a', expected a whole number >= 0\n"
    )


def test_importing_traces_imports_nothing_heavy():
    code = (
        "import sys, modelium.traces, modelium.cli.trace.group; "
        "print([m for m in ('pyarrow', 'scipy', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
