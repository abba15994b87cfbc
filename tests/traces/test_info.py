"""Figures of a trace, on traces where they are known."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.errors import TraceError
from modelium.traces import (
    Labels,
    Trace,
    Workload,
    check_models,
    describe,
    draw_trace,
    generate,
    zipf_shares,
)
from modelium.traces.info import idle_share, skew, zipf_mle


def test_figures_of_a_trace_counted_by_hand():
    n = 20
    trace = Trace(
        np.arange(1.0, n + 1) * 10,
        Labels.of(["a"] * 16 + ["b"] * 2 + ["c"] * 2),
        np.arange(1, n + 1).astype(np.int32),
        np.full(n, 5, np.int32),
    )
    known = describe(trace)
    assert (known.requests, known.models, known.span_s) == (20, 3, 200.0)
    assert known.rate_per_s == 0.1
    assert known.cv == 0.0
    assert known.peak_per_minute == 6
    assert known.skew.top1 == 0.8
    assert known.skew.bottom50_percent == pytest.approx(0.2)  # two of three models
    # Gaps above 10 s: a has 160..200; b 0..170 and 180..200; c 0..190.
    assert known.idle[10] == pytest.approx((40 + 190 + 190) / 3 / 200)
    assert known.prompt_tokens.p50 == 10.5
    assert known.output_tokens.max == 5


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_skew_is_that_of_sorted_counts(counts):
    measured = skew(np.array(counts))
    ordered, total = sorted(counts, reverse=True), sum(counts)
    n = len(counts)
    assert measured.top1 == pytest.approx(ordered[0] / total)
    assert measured.top10_percent == pytest.approx(sum(ordered[: max(1, round(n / 10))]) / total)
    assert measured.top20_percent == pytest.approx(sum(ordered[: max(1, round(n / 5))]) / total)
    assert measured.bottom50_percent == pytest.approx(sum(ordered[-math.ceil(n / 2) :]) / total)


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 1.5])
def test_the_exponent_of_zipf_is_found_again(s):
    counts = np.round(zipf_shares(50, s) * 1e7).astype(np.int64)
    assert zipf_mle(counts) == pytest.approx(s, abs=1e-3)


def test_the_exponent_is_the_most_likely_one():
    counts = np.array([40, 13, 12, 5, 2, 1])

    def likelihood(s: float) -> float:
        return float(np.dot(counts, np.log(zipf_shares(6, s))))

    best = zipf_mle(counts)
    assert best is not None
    assert all(likelihood(best) > likelihood(best + step) for step in (-0.01, 0.01, -0.5, 0.5))


def test_one_model_has_no_exponent_and_one_request_no_cv():
    known = describe(Trace(np.zeros(1), Labels.of(["a"]), *[np.ones(1, np.int32)] * 2))
    assert (known.skew.zipf, known.cv, known.rate_per_s) == (None, None, None)
    assert json.loads(json.dumps(known.as_json(), allow_nan=False))["requests"] == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 100))
def test_idle_share_is_the_length_of_all_long_gaps(times, limit):
    arrivals = np.sort(np.array(times))
    points = [0.0, *arrivals.tolist(), 100.0]
    long = sum(b - a for a, b in itertools.pairwise(points) if b - a > limit)
    assert idle_share([arrivals], 100.0, limit) == pytest.approx(long / 100)


def test_poisson_idle_share_meets_its_closed_form():
    # The share of time in gaps > t of a Poisson process: (1 + λt) exp(-λt).
    trace = generate(Workload(("a",), 0.05, 2_000_000.0), 1)
    for t in (10, 60):
        x = 0.05 * t
        assert describe(trace).idle[t] == pytest.approx((1 + x) * math.exp(-x), abs=0.01)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path, busy, ending):
    path = tmp_path / f"t.{ending}"
    draw_trace(busy, path)
    assert path.stat().st_size > 10_000
    starts = {"png": b"\x89PNG", "svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[ending])


def test_a_picture_of_one_request_is_drawn_too(tmp_path):
    draw_trace(
        Trace(np.zeros(1), Labels.of(["a"]), *[np.ones(1, np.int32)] * 2), tmp_path / "t.png"
    )


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path, three):
    with pytest.raises(TraceError, match="cannot be drawn"):
        draw_trace(three, tmp_path / "t.xyz")


def test_a_model_that_nobody_knows_is_named_with_row_and_hint():
    trace = Trace(
        np.arange(3.0),
        Labels.of(["phi-4", "llama-3.1-8", "gpt"]),
        *[np.ones(3, np.int32)] * 2,
        source="prod.csv",
    )
    check_models(trace, {"phi-4", "llama-3.1-8", "gpt"})
    with pytest.raises(TraceError) as caught:
        check_models(trace, {"phi-4", "llama-3.1-8b"})
    assert str(caught.value) == (
        "prod.csv, row 2: no model called 'llama-3.1-8'. Did you mean 'llama-3.1-8b'? "
        "(1 more model is unknown, too.)"
    )
    with pytest.raises(TraceError, match=r"called 'gpt' in m\.yaml\. Known models are: x, y"):
        check_models(trace.take(np.array([2])), ["y", "x"], "m.yaml")
