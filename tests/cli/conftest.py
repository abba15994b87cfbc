"""A small trace, so that runs take a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelium.traces import Workload, generate, write_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Ten minutes of three models that do not fit one GPU together."""
    models = ("qwen2.5-14b", "qwen3-14b", "phi-4")
    path = tmp_path / "small.csv"
    write_trace(generate(Workload(models=models, span_s=600.0, rate_per_s=0.3), seed=1), path)
    return path
