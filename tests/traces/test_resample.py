"""AlpaServe's window-wise Gamma re-sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from modelium.errors import TraceError
from modelium.traces import Labels, Trace, Workload, generate, resample, split

WINDOW_S = 100.0


@pytest.fixture(scope="module")
def swinging() -> Trace:
    """One model at 20/s in even windows of 100 s and at 2/s in odd ones."""
    parts = [
        generate(Workload(("a",), 20.0 if w % 2 == 0 else 2.0, WINDOW_S), seed=w).arrival_s
        + w * WINDOW_S
        for w in range(40)
    ]
    times = np.concatenate(parts)
    n = len(times)
    # The prompt says from which window a request came.
    window = (times // WINDOW_S).astype(np.int32)
    return Trace(times, Labels.constant("a", n), window, np.ones(n, np.int32), source="s")


def counts(trace: Trace) -> np.ndarray:
    return np.histogram(trace.arrival_s, 40, (0, 40 * WINDOW_S))[0]


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_each_window_keeps_its_rate_times_the_factor(swinging, rate):
    before, after = counts(swinging), counts(resample(swinging, WINDOW_S, rate=rate, seed=1))
    # CV is estimated near 1, so counts are near Poisson
    assert np.all(np.abs(after - rate * before) < 5 * np.sqrt(rate * before) + 5)
    total = rate * before.sum()
    assert abs(after.sum() - total) < 4 * 1.2 * math.sqrt(total)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_burstiness_is_scaled(cv):
    steady = generate(Workload(("a",), 20.0, 4000.0), 1)
    gaps = np.diff(resample(steady, 1000.0, cv=cv, seed=1).arrival_s)
    squares = (gaps / gaps.mean() - 1.0) ** 2
    error = squares.std() / math.sqrt(len(gaps))
    assert abs(squares.mean() - cv**2) < 4 * error + 0.1 * cv**2  # and the estimate of CV


def test_other_columns_come_from_the_same_model_and_window(swinging):
    redrawn = resample(swinging, WINDOW_S, rate=2.0, seed=1)
    assert redrawn.prompt_tokens.tolist() == (redrawn.arrival_s // WINDOW_S).tolist()


def test_models_are_redrawn_apart(busy):
    redrawn = resample(busy, 500.0, seed=1)
    only_a = busy.take(busy.model.codes == 0)
    alone = resample(only_a, 500.0, seed=1)
    mine = redrawn.arrival_s[redrawn.model.codes == redrawn.model.names.index("a")]
    assert mine.tolist() == alone.arrival_s.tolist()


def test_a_window_without_requests_stays_empty(swinging):
    gap = swinging.take((swinging.arrival_s < 500) | (swinging.arrival_s >= 900))
    assert counts(resample(gap, WINDOW_S, rate=3.0, seed=1))[5:9].sum() == 0


def test_split_gives_each_request_to_exactly_one_part(busy):
    train, test = split(busy, 700.0)
    assert len(train) + len(test) == len(busy)
    assert train.arrival_s.max() < 700.0
    assert (test.arrival_s + 700.0).min() >= 700.0
    assert test.arrival_s[-1] + 700.0 == pytest.approx(busy.arrival_s[-1])


def test_nothing_of_the_test_slice_reaches_the_train_slice(swinging):
    changed = replace(swinging, prompt_tokens=swinging.prompt_tokens.copy())
    late = changed.arrival_s >= 2000.0
    changed.prompt_tokens[late] += 1000
    changed = changed.take(~late | (np.arange(len(changed)) % 2 == 0))  # and thin the test slice
    redrawn = [
        resample(split(t, 2000.0)[0], WINDOW_S, seed=1, part="train") for t in (swinging, changed)
    ]
    assert redrawn[0].arrival_s.tolist() == redrawn[1].arrival_s.tolist()
    assert redrawn[0].prompt_tokens.tolist() == redrawn[1].prompt_tokens.tolist()


def test_train_and_test_share_no_random_numbers(busy):
    half = split(busy, 1000.0)[0]
    train, test = (resample(half, 500.0, seed=1, part=part) for part in ("train", "test"))
    assert set(train.arrival_s.tolist()).isdisjoint(test.arrival_s.tolist())


def test_the_same_seed_gives_the_same_trace(busy, columns):
    assert columns(resample(busy, 500.0, seed=3)) == columns(resample(busy, 500.0, seed=3))


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"cv": -1.0}, {"window_s": 0.0}])
def test_factors_must_be_above_zero(busy, options):
    with pytest.raises(TraceError, match="above 0"):
        resample(busy, **{"window_s": 500.0, **options})
