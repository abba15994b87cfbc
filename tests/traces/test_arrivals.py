"""Arrival processes against their closed forms, within 4 standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.traces.arrivals import Intensity, gamma, poisson, weibull, weibull_shape
from modelium.traces.random_streams import stream

PROCESSES = {
    "poisson": lambda rate, cv, span, rng: poisson(rate, span, rng),
    "gamma": gamma,
    "weibull": weibull,
}
CASES = [
    ("poisson", 1.0),
    ("gamma", 0.5),
    ("gamma", 1.0),
    ("gamma", 4.0),
    ("weibull", 0.5),
    ("weibull", 1.0),
    ("weibull", 3.0),
]


@pytest.mark.parametrize(("name", "cv"), CASES)
def test_the_expected_number_is_exactly_rate_times_span(name, cv):
    # Short spans: an ordinary renewal process, begun with a whole gap, would be off by (cv²-1)/2.
    rng = stream(1, name, str(cv))
    counts = np.array([len(PROCESSES[name](2.0, cv, 5.0, rng)) for _ in range(4000)])
    assert abs(counts.mean() - 10.0) < 4 * counts.std() / math.sqrt(len(counts))


@pytest.mark.parametrize(("name", "cv"), CASES)
def test_gaps_have_the_mean_and_the_cv_asked_for(name, cv):
    gaps = np.diff(PROCESSES[name](2.0, cv, 100_000.0, stream(2, name, str(cv))))
    n = len(gaps)
    assert abs(gaps.mean() - 0.5) < 4 * 0.5 * cv / math.sqrt(n)
    squares = (gaps / 0.5 - 1.0) ** 2  # their mean is cv²
    assert abs(squares.mean() - cv**2) < 4 * squares.std() / math.sqrt(n)


def test_poisson_counts_have_a_variance_equal_to_their_mean():
    times = poisson(3.0, 20_000.0, stream(3))
    counts = np.histogram(times, 20_000, (0, 20_000))[0]
    error = math.sqrt((2 * 3.0**2 + 3.0) / 20_000)  # of the variance of Poisson counts
    assert abs(counts.var() - 3.0) < 4 * error


@pytest.mark.parametrize("name", ["gamma", "weibull"])
def test_cv_one_is_poisson(name):
    gaps = np.diff(PROCESSES[name](1.0, 1.0, 50_000.0, stream(4, name)))
    for t in (0.5, 1.0, 2.0):
        p = math.exp(-t)
        assert abs(np.mean(gaps > t) - p) < 4 * math.sqrt(p * (1 - p) / len(gaps))


@given(st.floats(0.05, 50.0))
def test_the_shape_of_a_weibull_law_gives_back_its_cv(cv):
    shape = weibull_shape(cv)
    first, second = math.lgamma(1 + 1 / shape), math.lgamma(1 + 2 / shape)
    assert math.sqrt(math.expm1(second - 2 * first)) == pytest.approx(cv, rel=1e-6)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_no_rate_no_arrivals(name):
    assert len(PROCESSES[name](0.0, 2.0, 100.0, stream(5))) == 0


@pytest.mark.parametrize(("name", "cv"), CASES)
def test_arrivals_are_sorted_and_inside_the_span(name, cv):
    times = PROCESSES[name](5.0, cv, 50.0, stream(6, name))
    assert np.all(np.diff(times) >= 0)
    assert times.min() >= 0
    assert times.max() < 50.0


@st.composite
def intensities(draw):
    widths = draw(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8))
    levels = draw(st.lists(st.just(0.0) | st.floats(0.01, 10.0), min_size=len(widths),
                           max_size=len(widths)))  # fmt: skip
    return Intensity(np.cumsum([0.0, *widths]), np.array(levels))


@settings(deadline=None)
@given(intensities(), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_bent_time_has_seen_exactly_as_much_load_as_its_own_clock(load, shares):
    if load.area_s == 0:
        return
    clock = np.sort(np.array(shares)) * load.area_s * (1 - 1e-9)
    times = load.when(clock)
    seen = [
        sum(
            level * (min(t, end) - start)
            for level, start, end in zip(load.level, load.edge_s, load.edge_s[1:], strict=False)
            if t > start
        )
        for t in times
    ]
    assert seen == pytest.approx(clock.tolist(), rel=1e-6, abs=1e-6)
    assert np.all(np.diff(times) >= -1e-9)


def test_bent_poisson_has_the_rate_of_each_stretch():
    load = Intensity(np.array([0.0, 1000.0, 3000.0, 4000.0]), np.array([2.0, 0.0, 5.0]))
    times = load.when(poisson(3.0, load.area_s, stream(7)))
    counts = np.histogram(times, [0, 1000, 3000, 4000])[0]
    assert counts[1] == 0
    assert abs(counts[0] - 6000) < 4 * math.sqrt(6000)
    assert abs(counts[2] - 15_000) < 4 * math.sqrt(15_000)


def test_the_day_curve_is_a_sine_that_keeps_the_mean():
    day = Intensity.day_curve(86_400.0, swing=0.6, peak_h=15.0)
    assert day.area_s == pytest.approx(86_400.0)
    hour = (day.edge_s[:-1] + 150.0) / 3600
    wanted = 1 + 0.6 * np.cos(2 * np.pi * (hour - 15.0) / 24)
    assert day.level == pytest.approx(wanted, abs=1e-4)


def test_the_day_curve_may_end_at_any_time():
    day = Intensity.day_curve(1000.0, swing=1.0, peak_h=0.0)
    assert day.edge_s[-1] == 1000.0
    assert day.area_s == pytest.approx(
        86_400 / (2 * np.pi) * np.sin(2 * np.pi * 1000 / 86_400) + 1000
    )


def test_bursts_have_the_times_and_the_moments_asked_for():
    on_s, off_s, quiet, span = 30.0, 90.0, 0.2, 1_000_000.0
    load = Intensity.on_off(span, on_s, off_s, quiet, stream(8))
    width, loud = np.diff(load.edge_s), load.level > quiet
    for which, mean in ((loud, on_s), (~loud, off_s)):
        n = which.sum()
        assert abs(width[which].mean() - mean) < 4 * mean / math.sqrt(n)
    assert np.all(loud[1:] != loud[:-1])
    # Renewal reward: the share of loud time has variance 2 p² q² / cycles.
    p = on_s / (on_s + off_s)
    cycles = span / (on_s + off_s)
    error = math.sqrt(2) * p * (1 - p) / math.sqrt(cycles)
    assert abs(width[loud].sum() / span - p) < 4 * error
    loudness = quiet + (1 - quiet) / p
    assert load.level[loud] == pytest.approx(loudness)
    assert abs(load.area_s / span - 1.0) < 4 * error * (loudness - quiet)


def test_bursts_begin_in_their_steady_state():
    starts = [
        Intensity.on_off(1.0, 30.0, 90.0, 0.2, stream(9, str(i))).level[0] for i in range(2000)
    ]
    share = np.mean(np.array(starts) > 1.0)
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_products_and_blends_are_those_of_the_levels():
    a = Intensity(np.array([0.0, 2.0, 4.0]), np.array([1.0, 3.0]))
    b = Intensity(np.array([0.0, 1.0, 4.0]), np.array([2.0, 0.5]))
    product, blend = a.times(b), a.blend(b, 0.25)
    assert product.edge_s.tolist() == [0.0, 1.0, 2.0, 4.0]
    assert product.level.tolist() == [2.0, 0.5, 1.5]
    assert blend.level.tolist() == [1.75, 0.625, 1.125]
    assert product.area_s == 2.0 + 0.5 + 3.0
