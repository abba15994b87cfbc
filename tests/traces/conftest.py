"""Small traces and the folder of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelium.traces import Labels, Trace, Workload, generate

REAL = Path(__file__).resolve().parents[2] / "../shared/traces"


@pytest.fixture
def real() -> Path:
    """The folder of public traces, which are not part of the project."""
    if not REAL.is_dir():
        pytest.skip("the public traces are not beside this repository (../shared/traces)")
    return REAL


@pytest.fixture
def three() -> Trace:
    """Three requests of two models with every column filled."""
    return Trace(
        arrival_s=np.array([0.5, 1.25, 3.0]),
        model=Labels.of(["b", "a", "b"]),
        prompt_tokens=np.array([10, 20, 30], np.int32),
        output_tokens=np.array([1, 2, 3], np.int32),
        slo_class=Labels.of(["fast", None, "slow"]),
        organization=Labels.of(["x", "x", "y"]),
        session=Labels.of([None, "s,1", "s,1"]),
        prefix_id=Labels.of([None, "p", "p"]),
        prefix_tokens=np.array([0, 5, 6], np.int32),
        source="three",
    )


@pytest.fixture(scope="session")
def busy() -> Trace:
    """Ten models, Poisson, about 20,000 requests in 2,000 s."""
    return generate(Workload(tuple("abcdefghij"), rate_per_s=10.0, span_s=2000.0), seed=7)


def columns(trace: Trace) -> dict[str, object]:
    """A trace as plain lists, to compare."""
    labels = ("model", "slo_class", "organization", "session", "prefix_id")
    arrays = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens")
    plain: dict[str, object] = {}
    for name in (*labels, *arrays):
        column = getattr(trace, name)
        if column is not None:
            plain[name] = column.values() if name in labels else column.tolist()
    return plain


@pytest.fixture(name="columns")
def _columns() -> object:
    return columns
