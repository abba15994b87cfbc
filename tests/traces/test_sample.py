"""The bundled day: as described, and made again by the command beside it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelium.traces import describe, read_trace

DATA = Path(__file__).resolve().parents[2] / "traces/data"
DAY = DATA / "day24.csv.gz"


def test_the_day_is_skewed_bursty_and_small():
    trace = read_trace(DAY)
    known = describe(trace)
    assert DAY.stat().st_size < 500_000
    assert known.models == 24
    assert 55_000 < known.requests < 65_000
    assert 86_000 < known.span_s <= 86_400
    assert 0.8 < (known.skew.zipf or 0) < 1.2
    assert (known.model_cv or 0) > 3
    assert known.idle[600] > 0.5
    assert 650 < known.prompt_tokens.mean < 750
    assert 180 < known.output_tokens.mean < 220
    assert trace.notes == ()


def test_every_request_of_the_day_fits_a_context_of_4096():
    trace = read_trace(DAY)
    assert (trace.prompt_tokens + trace.output_tokens).max() <= 4096


def test_the_largest_model_of_the_day_is_among_the_rarer_half():
    model = read_trace(DAY).model
    order = [model.names[i] for i in np.argsort(-model.counts())]
    assert order.index("llama-3.1-70b") >= 12


def test_the_day_has_a_night_and_groups_that_burst_together():
    trace = read_trace(DAY)
    hours = np.histogram(trace.arrival_s, 24, (0, 86_400))[0]
    assert hours[12:20].sum() > 2 * hours[:8].sum()
    own = [trace.arrival_s[trace.model.codes == m] for m in range(24)]
    windows = [np.histogram(times, 288, (0, 86_400))[0] for times in own]
    pairs = np.corrcoef(windows)[np.triu_indices(24, 1)]
    assert (pairs > 0.4).sum() >= 24


@pytest.mark.skipif(os.name != "posix", reason="the command is a shell script")
def test_the_command_beside_the_day_makes_it_again(tmp_path):
    # `modelium` may not be on the path where tests run: this one is.
    start = tmp_path / "modelium"
    start.write_text(
        f"#!{sys.executable}\nimport sys\nfrom modelium.cli import main\nsys.exit(main())\n"
    )
    start.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    sh = shutil.which("sh") or "/bin/sh"
    subprocess.run([sh, DATA / "make.sh", tmp_path], check=True, env=env, capture_output=True)
    again = tmp_path / "day24.csv.gz"
    # Unpacked: another zlib may pack the same text into other bytes.
    assert gzip.decompress(again.read_bytes()) == gzip.decompress(DAY.read_bytes())
