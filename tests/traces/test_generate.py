"""Workloads: popularity, load and lengths follow their laws, each from its own stream."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.errors import TraceError
from modelium.traces import Bursts, Drawn, Lognormal, Workload, generate, zipf_shares
from modelium.traces.random_streams import stream

BASE = Workload(tuple("abcdefgh"), rate_per_s=5.0, span_s=4000.0)


def arrivals(trace, name):
    return trace.arrival_s[trace.model.codes == trace.model.names.index(name)]


@given(st.integers(1, 500), st.floats(0.0, 4.0))
def test_zipf_shares_follow_the_law(n, s):
    shares = zipf_shares(n, s)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[-1] / shares[0] == pytest.approx(float(n) ** -s)


def test_requests_of_each_rank_follow_zipf():
    trace = generate(replace(BASE, zipf=1.2), seed=1)
    wanted = zipf_shares(8, 1.2) * 20_000
    counts = np.array([len(arrivals(trace, name)) for name in BASE.models])
    assert np.all(np.abs(counts - wanted) < 4 * np.sqrt(wanted))


def test_the_same_seed_gives_the_same_trace(columns):
    assert columns(generate(BASE, 3)) == columns(generate(BASE, 3))
    assert columns(generate(BASE, 3)) != columns(generate(BASE, 4))


def test_a_trace_is_sorted_and_inside_its_span():
    trace = generate(replace(BASE, cv=3.0, bursts=Bursts(groups=2), day_swing=0.5), 1)
    assert np.all(np.diff(trace.arrival_s) >= 0)
    assert trace.arrival_s[0] >= 0
    assert trace.arrival_s[-1] <= 4000.0


def test_other_lengths_leave_the_arrivals_alone():
    first = generate(BASE, 1)
    second = generate(replace(BASE, lengths=Lognormal(prompt_mean=50.0)), 1)
    assert first.arrival_s.tolist() == second.arrival_s.tolist()
    assert first.output_tokens.tolist() == second.output_tokens.tolist()
    assert first.prompt_tokens.tolist() != second.prompt_tokens.tolist()


def test_other_lengths_of_one_purpose_leave_the_other_models_alone():
    alone = generate(Workload(("a",), 1.0, 1000.0), 5)
    both = generate(Workload(("a", "b"), 2.0, 1000.0, zipf=0.0), 5)  # a keeps its rate of 1/s
    assert arrivals(both, "a").tolist() == alone.arrival_s.tolist()
    mine = both.model.codes == both.model.names.index("a")
    assert both.prompt_tokens[mine].tolist() == alone.prompt_tokens.tolist()


def test_another_rate_leaves_the_bursts_where_they_are():
    bursty = replace(BASE, zipf=0.0, bursts=Bursts(on_s=100, off_s=400, quiet=0.0))
    low, high = generate(bursty, 2), generate(replace(bursty, rate_per_s=20.0), 2)
    busy_low, busy_high = (set((arrivals(t, "a") // 10).astype(int).tolist()) for t in (low, high))
    assert len(busy_low - busy_high) <= 2  # stretches of ten seconds, but for the edges of bursts


def test_streams_do_not_depend_on_each_other():
    assert stream(1, "a").integers(1 << 60) == stream(1, "a").integers(1 << 60)
    drawn = {int(stream(*key).integers(1 << 60)) for key in ((1, "a"), (1, "b"), (2, "a"), (1,))}
    assert len(drawn) == 4
    assert stream(1, "a", "b").integers(1 << 60) != stream(1, "ab").integers(1 << 60)


def test_gamma_gaps_have_the_cv_asked_for():
    trace = generate(Workload(("a",), 5.0, 40_000.0, cv=3.0), 1)
    gaps = np.diff(trace.arrival_s)
    squares = (gaps * 5.0 - 1.0) ** 2
    assert abs(squares.mean() - 9.0) < 4 * squares.std() / math.sqrt(len(gaps))


def test_the_mean_load_is_kept_by_swings_and_bursts():
    shape = replace(BASE, span_s=86_400.0, day_swing=0.8, rate_per_s=2.0)
    assert abs(len(generate(shape, 1)) - 172_800) < 4 * math.sqrt(172_800)
    bursty = replace(shape, zipf=0.0, bursts=Bursts(on_s=60, off_s=240, quiet=0.1))
    counts = [len(generate(replace(bursty, span_s=5000.0), seed)) for seed in range(40)]
    # With a day curve cut at 5000 s (night) the mean is the curve's, not 1.
    turn = 2 * math.pi / 86_400
    night = 1 + 0.8 * (math.sin(turn * (5000 - 54_000)) - math.sin(turn * -54_000)) / turn / 5000
    error = np.std(counts) / math.sqrt(40)
    assert abs(np.mean(counts) - 10_000 * night) < 4 * error


def test_the_day_has_its_peak_and_its_night():
    trace = generate(Workload(("a",), 2.0, 86_400.0, day_swing=0.8, day_peak_h=15.0), 1)
    hours = np.histogram(trace.arrival_s, 24, (0, 86_400))[0]
    middle = np.arange(24) + 0.5
    wanted = 7200 * (1 + 0.8 * np.cos(2 * np.pi * (middle - 15) / 24))
    assert np.all(np.abs(hours - wanted) < 4.5 * np.sqrt(wanted) + 20)


def correlations(bursts: Bursts) -> np.ndarray:
    names = tuple(f"m{i}" for i in range(6))
    trace = generate(Workload(names, 60.0, 20_000.0, zipf=0.0, bursts=bursts), 3)
    minutes = [np.histogram(arrivals(trace, n), 333, (0, 19_980))[0] for n in names]
    return np.corrcoef(minutes)[np.triu_indices(6, 1)]


def test_models_of_a_group_burst_together_and_others_do_not():
    pairs = correlations(Bursts(on_s=200, off_s=200, quiet=0.0, groups=2, together=1.0))
    together, apart = pairs[pairs > 0.5], pairs[pairs <= 0.5]
    assert len(together) == 6  # two groups of three
    assert together.min() > 0.95
    assert np.abs(apart).max() < 0.35


def test_without_groups_or_togetherness_bursts_are_independent():
    for bursts in (
        Bursts(on_s=200, off_s=200, quiet=0.0),
        Bursts(on_s=200, off_s=200, quiet=0.0, groups=2, together=0.0),
    ):
        assert np.abs(correlations(bursts)).max() < 0.4


def test_shuffling_deals_the_ranks_by_seed():
    order = [
        tuple(np.argsort(-generate(replace(BASE, shuffle=True), seed).model.counts()).tolist())
        for seed in range(6)
    ]
    assert len(set(order)) > 3


def test_lognormal_lengths_have_the_moments_asked_for():
    law = Lognormal(400.0, 90.0, 0.8, 1.5, prompt_limit=10**8, output_limit=10**8)
    prompt, output = law.draw(200_000, 1, "m")
    for tokens, mean, cv in ((prompt, 400.0, 0.8), (output, 90.0, 1.5)):
        assert abs(tokens.mean() - mean) < 4 * mean * cv / math.sqrt(200_000)
        assert np.median(tokens) == pytest.approx(mean / math.sqrt(1 + cv**2), rel=0.02)
        squares = (tokens / mean - 1) ** 2
        assert abs(squares.mean() - cv**2) < 4 * squares.std() / math.sqrt(200_000)
    assert abs(np.corrcoef(prompt, output)[0, 1]) < 4 / math.sqrt(200_000)


def test_lengths_stay_between_one_and_their_limit():
    prompt, output = Lognormal(3.0, 100.0, 3.0, 3.0, 50, 60).draw(10_000, 1, "m")
    assert (prompt.min(), prompt.max(), output.max()) == (1, 50, 60)


def test_drawn_lengths_keep_their_pairs():
    law = Drawn(np.array([1, 20, 300], np.int32), np.array([7, 8, 9], np.int32))
    prompt, output = law.draw(30_000, 1, "m")
    assert set(zip(prompt.tolist(), output.tolist(), strict=True)) == {(1, 7), (20, 8), (300, 9)}
    share = np.mean(prompt == 20)
    assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 30_000)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": ()}, "at least one model"),
        ({"day_peak_h": float("nan")}, "day_peak_h is nan, expected 0 to 24"),
        ({"time_digits": -1}, "time_digits is -1, expected 0 to 12"),
        ({"models": ("a", "b", "a")}, "'a' is named twice"),
        ({"rate_per_s": -1.0}, "rate_per_s is -1, expected 0 to inf"),
        ({"rate_per_s": math.nan}, "rate_per_s is nan"),
        ({"rate_per_s": 1e9}, "are more than 50,000,000"),
        ({"rate_per_s": math.inf}, "are more than 50,000,000"),
        ({"cv": 0.0}, "cv is 0"),
        ({"day_swing": 2.0}, "day_swing is 2, expected 0 to 1"),
        ({"bursts": Bursts(quiet=1.5)}, "quiet is 1.5"),
        ({"bursts": Bursts(on_s=0.0)}, "on_s is 0"),
        ({"rate_per_s": 0.0}, "no request falls into"),
    ],
)
def test_a_wrong_workload_is_refused(change, expected):
    with pytest.raises(TraceError, match=expected):
        generate(replace(BASE, **change))


def test_a_negative_seed_is_refused():
    with pytest.raises(TraceError, match="seed is -1, expected a whole number >= 0"):
        generate(BASE, -1)
