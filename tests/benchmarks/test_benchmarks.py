"""The benchmarks of accidents and of random input, a few rounds of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *options: str) -> list[dict[str, Any]]:
    """The rows that a benchmark prints; it ends with 0 if it found nothing wrong."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    rows: list[dict[str, Any]] = json.loads(ended.stdout)
    return rows


def test_random_input_meets_no_traceback() -> None:
    rows = run("fuzz", "--count", "400")
    assert [row["work"] for row in rows] == [
        "requests", "configurations", "policies", "traces", "folders",
    ]  # fmt: skip
    assert [row["cases"] for row in rows] == [400] * 5
    # Some of it must be valid: else nothing beyond the first check was tried.
    good = ("200", "planned", "made", "read", "analysed")
    assert all(row["outcomes"][word] > 20 for row, word in zip(rows, good, strict=True))


def test_a_soak_loses_nothing() -> None:
    [row] = run("soak", "--minutes", "0.2")
    assert row["answered"] > 20


def test_faults_lose_nothing() -> None:
    rows = run("faults", "--times", "1", "--fault", "engine_killed", "port_taken", "cold_crowd")
    assert [row["requests"] for row in rows] == [8, 3, 60]
    assert [(row["told"], row["cut"]) for row in rows] == [(1, 0), (0, 0), (0, 0)]
