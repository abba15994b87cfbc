"""The cases: a simulator's and a real server's latencies, met by the command anyone can run."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "../shared/cases"
METRICS = [
    f"{name}_{what}" for name in ("ttft", "tpot", "e2e") for what in ("mean", "p50", "p90", "p99")
]
needs_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason="../shared/cases, other people's results, is not here"
)


def cases(*arguments: str | Path) -> Result:
    """Run `python benchmarks/cases.py`, in this process: the engines are loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        main = importlib.import_module("cases").main
        return CliRunner().invoke(main, [str(argument) for argument in arguments])


def relative(kind: str, folder: Path) -> dict[str, float]:
    """Relative differences by metric, having checked the form of `--json`."""
    done = cases(kind, folder, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.keys() == {"case", "kind", "rows"}
    assert (answer["case"], answer["kind"]) == (folder.resolve().name, kind)
    assert [row["metric"] for row in answer["rows"]] == METRICS
    for row in answer["rows"]:
        assert row.keys() == {"policy", "metric", "ours", "theirs", "difference", "relative"}
        assert row["policy"] is None
        assert row["difference"] == pytest.approx(row["ours"] - row["theirs"])
        assert row["relative"] == pytest.approx(row["difference"] / row["theirs"])
    return {row["metric"]: row["relative"] for row in answer["rows"]}


@needs_cases
def test_vidur_within_two_per_cent_of_every_quantile() -> None:
    off = relative("vidur", CASES / "vidur_llama2_7b_a100_10k")
    assert max(map(abs, off.values())) < 0.02


@needs_cases
@pytest.mark.parametrize(
    "folder", ["vllm019_llama31_8b_rtxpro6000_300", "vllm019_raw/RTXPRO6000/Llama-3.1-8B"]
)
def test_a_real_vllm_is_met_by_coefficients_from_profiles_alone(folder: str) -> None:
    off = relative("vllm", CASES / folder)
    for name in ("tpot", "e2e"):
        assert all(abs(off[f"{name}_{what}"]) < 0.05 for what in ("mean", "p50", "p99")), off
    assert abs(off["ttft_mean"]) < 0.10


def made_up(folder: Path, **config: Any) -> Path:
    """A folder of the plain form whose "real" times are made up."""
    rng = np.random.default_rng(7)
    arrival = np.cumsum(rng.exponential(0.2, 60)).round(3)
    prompt, output = rng.integers(200, 3000, 60), rng.integers(50, 400, 60)
    first = arrival + 0.5
    columns = [np.arange(60), arrival, prompt, output, first, first + 0.03 * (output - 1)]
    names = "id,arrival_s,prompt_tokens,output_tokens,real_first_token_s,real_last_token_s"
    np.savetxt(
        folder / "requests.csv", np.stack(columns, 1), "%.6g", ",", header=names, comments=""
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def times(done: Result) -> dict[str, float]:
    assert done.exit_code == 0, done.stderr
    return {row["metric"]: row["ours"] for row in json.loads(done.stdout)["rows"]}


def test_scarce_kv_lengthens_answers(tmp_path: Path) -> None:
    """Other models and GPUs run, too; with room for few sequences requests queue and restart."""
    common = {"model": "meta-llama/Llama-3.1-8B", "gpu": "RTX4090", "max_num_seqs": 64}
    found = []
    for kv_tokens in (200_000, 8_000):
        folder = made_up(tmp_path, kv_tokens=kv_tokens, max_num_batched_tokens=2048, **common)
        found.append(times(cases("vllm", folder, "--json")))
    assert found[1]["ttft_mean"] > 3 * found[0]["ttft_mean"]
    assert found[1]["e2e_p99"] > found[0]["e2e_p99"]


def test_replicas_share_requests_and_experts(tmp_path: Path) -> None:
    common = {"model": "Qwen/Qwen3-30B-A3B-Instruct-2507", "gpu": "RTXPRO6000"}
    one = times(cases("vllm", made_up(tmp_path, kv_tokens=200_000, **common), "--json"))
    folder = made_up(tmp_path, kv_tokens=200_000, replicas=2, **common)
    two = times(cases("vllm", folder, "--json"))
    assert two["tpot_mean"] < one["tpot_mean"]


def test_the_table_names_the_case_and_what_it_rests_on(tmp_path: Path) -> None:
    folder = made_up(tmp_path, model="llama-3.1-8b", gpu="h100", kv_tokens=400_000)
    done = cases("vllm", folder)
    assert done.exit_code == 0, done.stderr
    assert "aiconfigurator" in done.stdout
    assert all(metric in done.stdout for metric in METRICS)


@pytest.mark.parametrize(
    ("kind", "config"), [("vidur", None), ("vllm", '{"max_num_seqs": 4}'), ("vllm", "{")]
)
def test_a_bad_folder_is_one_line_and_exit_2(kind: str, config: str | None, tmp_path: Path) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    done = cases(kind, tmp_path)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("vllm", "{}", "config.json lacks model, gpu, kv_tokens; it needs"),
        ("vllm", '{"model": "llama-3.1-8b", "gpu": "h100"}', "config.json lacks kv_tokens;"),
        ("vllm", "", "config.json is not JSON"),
        ("vllm", "[]", "config.json holds a list, expected an object"),
        ("vllm", '{"nodes": []}', "meta.json"),
        ("vidur", "{}", "config.json lacks num_blocks, block_size"),
    ],
)
def test_what_a_configuration_lacks_is_named(
    kind: str, config: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    done = cases(kind, tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_order_of_rows_changes_no_figure(replicas: int, tmp_path: Path) -> None:
    """Not even the last bit, with requests that come at one instant, dealt to replicas."""
    folder = made_up(
        tmp_path, model="llama-3.1-8b", gpu="h100", kv_tokens=30_000, replicas=replicas
    )
    file = folder / "requests.csv"
    header, *rows = file.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    for k in range(1, len(cells), 3):
        cells[k][1] = cells[k - 1][1]
    rows = [",".join(row) for row in cells]
    found = []
    for order in (np.arange(len(rows)), np.random.default_rng(3).permutation(len(rows))):
        file.write_text("\n".join([header, *(rows[k] for k in order)]) + "\n")
        found.append(times(cases("vllm", folder, "--json")))
    assert found[0] == found[1]


@needs_cases
def test_the_order_of_a_raw_file_changes_no_figure(tmp_path: Path) -> None:
    """Requests queued at one instant are in order of their ids: 2 before 10."""
    folder = tmp_path / "raw"
    shutil.copytree(CASES / "vllm019_raw/RTXPRO6000/Llama-3.1-8B", folder)
    file = folder / "vllm/requests.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()[:60]]
    for k in range(0, 60, 20):
        for row in rows[k : k + 15]:
            row["queued_ts"] = rows[k]["queued_ts"]
    lines = [json.dumps(row) for row in rows]
    found = []
    for order in (range(60), np.random.default_rng(3).permutation(60)):
        file.write_text("\n".join(lines[k] for k in order) + "\n")
        found.append(times(cases("vllm", folder, "--json")))
    assert found[0] == found[1]


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    made_up(tmp_path, model="llama-3.1-8b", gpu="h100", kv_tokens=400_000)
    header = (tmp_path / "requests.csv").read_text().splitlines()[0]
    (tmp_path / "requests.csv").write_text(header + "\n")
    done = cases("vllm", tmp_path)
    assert done.exit_code == 2
    assert "requests.csv has no requests" in done.stderr


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    made_up(tmp_path, model="llama-3.1-8b", gpu="h100", kv_tokens=400_000)
    text = (tmp_path / "requests.csv").read_text().replace("prompt_tokens", "prompts", 1)
    (tmp_path / "requests.csv").write_text(text)
    done = cases("vllm", tmp_path)
    assert done.exit_code == 2
    assert "no column 'prompt_tokens'" in done.stderr


def test_the_script_runs_on_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/cases.py"), "vidur", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr
