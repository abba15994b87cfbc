"""A million requests are read in less than 200 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelium.traces import Labels, Trace, write_trace

MEASURE = """
import sys
from pathlib import Path
from modelium.traces import read_trace

def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

before = kib("VmRSS")
trace = read_trace(sys.argv[1])
assert len(trace) == 1_000_000
print((kib("VmHWM") - before) * 1024)
"""


@pytest.fixture(scope="module")
def million() -> Trace:
    n = 1_000_000
    rng = np.random.default_rng(0)
    return Trace(
        np.cumsum(rng.exponential(0.01, n)).round(6),
        Labels(
            rng.integers(0, 300, n).astype(np.int32), tuple(f"model-{i:03}" for i in range(300))
        ),
        rng.integers(1, 4096, n).astype(np.int32),
        rng.integers(1, 1024, n).astype(np.int32),
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("ending", ["csv.gz", "parquet"])
def test_a_million_requests_fit_into_200_mb(tmp_path, million, ending):
    path = tmp_path / f"t.{ending}"
    write_trace(million, path)
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], check=True, capture_output=True, text=True
    )
    assert int(out.stdout) < 200e6
