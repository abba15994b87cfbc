"""Transforms do what they say and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.errors import TraceError
from modelium.traces import (
    Labels,
    Lognormal,
    Trace,
    Workload,
    cut,
    generate,
    map_models,
    merge,
    sample,
    scale_rate,
    speed_up,
    spread,
    with_lengths,
)


def rows(trace: Trace) -> list[tuple[object, ...]]:
    return list(
        zip(
            trace.arrival_s.tolist(),
            trace.model.values(),
            trace.prompt_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        )
    )


@settings(deadline=None, max_examples=50)
@given(start=st.floats(0, 2000), length=st.floats(50, 2000))
def test_cutting_keeps_exactly_what_arrives_between(busy_rows, start, length):
    trace, listed = busy_rows
    kept = [(t, *rest) for t, *rest in listed if start <= t < start + length]
    if not kept:
        with pytest.raises(TraceError, match="no request arrives between"):
            cut(trace, start, start + length)
        return
    part = cut(trace, start, start + length)
    assert [r[1:] for r in rows(part)] == [r[1:] for r in kept]
    assert part.arrival_s.tolist() == [t - start for t, *_ in kept]


@pytest.fixture(scope="module")
def busy_rows():
    trace = generate(Workload(tuple("abc"), 1.0, 2000.0), 1)
    return trace, rows(trace)


def test_speeding_up_divides_times_only(busy):
    fast = speed_up(busy, 60.0)
    assert fast.arrival_s.tolist() == (busy.arrival_s / 60).tolist()
    assert fast.prompt_tokens is busy.prompt_tokens


def test_thinning_keeps_each_request_with_that_chance(busy):
    thin = scale_rate(busy, 0.25, seed=1)
    n = len(busy)
    assert abs(len(thin) - n / 4) < 4 * math.sqrt(n * 0.25 * 0.75)
    assert set(rows(thin)) <= set(rows(busy))


def test_thinned_poisson_is_poisson(busy):
    gaps = np.diff(scale_rate(busy, 0.25, seed=1).arrival_s)
    squares = (gaps / gaps.mean() - 1.0) ** 2
    assert abs(squares.mean() - 1.0) < 4 * squares.std() / math.sqrt(len(gaps))


@pytest.mark.parametrize("factor", [2.0, 2.5, 3.0])
def test_raising_the_rate_lays_copies_over_the_trace(busy, factor):
    more = scale_rate(busy, factor, seed=1)
    n, rest = len(busy), factor % 1
    assert abs(len(more) - factor * n) <= 4 * math.sqrt(n * rest * (1 - rest))
    assert more.span_s <= busy.span_s
    assert np.all(np.diff(more.arrival_s) >= 0)
    counts = dict(zip(more.model.names, more.model.counts().tolist(), strict=True))
    for name, count in zip(busy.model.names, busy.model.counts().tolist(), strict=True):
        assert abs(counts[name] - factor * count) <= 4 * math.sqrt(count)
    assert set(rows(busy)) <= set(rows(more))


def test_raising_the_rate_keeps_load_over_minutes():
    day = generate(Workload(("a", "b"), 1.0, 86_400.0, day_swing=1.0), 1)
    before = np.histogram(day.arrival_s, 24, (0, 86_400))[0]
    after = np.histogram(scale_rate(day, 2.0).arrival_s, 24, (0, 86_400))[0]
    assert np.all(np.abs(after - 2 * before) < 4 * np.sqrt(2 * before) + 150)


def test_sampling_keeps_exactly_so_many(busy):
    some = sample(busy, 500, seed=1)
    assert len(some) == 500
    assert set(rows(some)) <= set(rows(busy))
    assert np.all(np.diff(some.arrival_s) >= 0)
    with pytest.raises(TraceError, match="cannot pick"):
        sample(busy, len(busy) + 1)


def test_spreading_undoes_rounding(busy):
    rounded = replace(busy, arrival_s=np.floor(busy.arrival_s / 50) * 50)
    spreaded = spread(rounded, 50.0, seed=1)
    counts = [np.histogram(t.arrival_s, 40, (0, 2000))[0].tolist() for t in (rounded, spreaded)]
    assert counts[0] == counts[1]
    within = spreaded.arrival_s % 50
    assert abs(within.mean() - 25) < 4 * 50 / math.sqrt(12 * len(busy))
    gaps = np.diff(spreaded.arrival_s)
    squares = (gaps / gaps.mean() - 1.0) ** 2
    error = squares.std() / math.sqrt(len(gaps))
    assert abs(squares.mean() - 1.0) < 4 * error  # Poisson again


def test_merging_keeps_every_request_and_keeps_sessions_apart(three, columns):
    other = replace(three, arrival_s=three.arrival_s + 0.1, slo_class=None, prefix_tokens=None)
    both = merge([three, other])
    assert sorted(rows(both)) == sorted(rows(three) + rows(other))
    assert both.model.names == ("a", "b")
    assert both.session is not None
    assert both.session.names == ("0:s,1", "1:s,1")
    assert both.slo_class is not None
    assert both.slo_class.values() == ["fast", None, None, None, "slow", None]
    assert both.prefix_tokens is not None
    assert both.prefix_tokens.tolist() == [0, 10, 5, 20, 6, 30]  # None meant whole prompts
    assert columns(merge([three])) == columns(three)


def functions(counts: dict[str, int]) -> Trace:
    names = [name for name, count in counts.items() for _ in range(count)]
    n = len(names)
    one = np.ones(n, np.int32)
    return Trace(np.arange(n, dtype=np.float64), Labels.of(names), one, one, source="f")


def test_stripe_deals_names_round_robin_in_order_of_appearance():
    trace = map_models(functions({"z": 5, "y": 4, "x": 3, "w": 2, "v": 1}), ["m0", "m1"])
    assert dict(zip(trace.model.names, trace.model.counts().tolist(), strict=True)) == {
        "m0": 5 + 3 + 1,
        "m1": 4 + 2,
    }


def test_popularity_keeps_the_busiest_together():
    trace = functions({"z": 1, "y": 9, "x": 3, "w": 8, "v": 1, "u": 2})
    mapped = map_models(trace, ["big", "mid", "small"], how="popularity")
    assert dict(zip(mapped.model.names, mapped.model.counts().tolist(), strict=True)) == {
        "big": 17,
        "mid": 5,
        "small": 2,
    }


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12),
    st.integers(1, 15),
    st.sampled_from(["stripe", "popularity"]),
)
def test_mapping_moves_whole_names_and_loses_no_request(counts, n, how):
    trace = functions({f"f{i:02}": count for i, count in enumerate(counts)})
    mapped = map_models(trace, [f"m{i}" for i in range(n)], how)
    pairs = set(zip(trace.model.values(), mapped.model.values(), strict=True))
    assert len(pairs) == len(counts)  # each function went to one model
    assert len(mapped) == len(trace)
    assert len(mapped.model.names) == min(n, len(counts))


def test_clients_may_stand_for_models(three):
    mapped = map_models(three, ["m0", "m1"], by="organization")
    assert mapped.model.values() == ["m0", "m0", "m1"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"models": ["m"], "by": "session"}, "not every request has a value in column session"),
        ({"models": ["m"], "by": "sesion"}, "Did you mean 'session'"),
        ({"models": ["m"], "how": "strip"}, "Did you mean 'stripe'"),
        ({"models": ["m", "m"]}, "different names"),
        ({"models": []}, "different names"),
    ],
)
def test_what_cannot_be_mapped_is_refused(three, options, expected):
    with pytest.raises(TraceError, match=expected):
        map_models(three, **options)


def test_new_lengths_leave_everything_else(busy):
    other = with_lengths(busy, Lognormal(prompt_limit=5), seed=2)
    assert other.arrival_s is busy.arrival_s
    assert other.prompt_tokens.max() == 5
    assert "lognormal" in other.notes[-1]


@pytest.mark.parametrize("change", [lambda t: speed_up(t, 0.0), lambda t: scale_rate(t, -1.0),
        lambda t: scale_rate(t, 1e9),
        lambda t: speed_up(t, math.inf),
                                    lambda t: spread(t, 0.0), lambda t: sample(t, 0)])  # fmt: skip
def test_factors_that_make_no_sense_are_refused(three, change):
    with pytest.raises(TraceError):
        change(three)


def test_labels_know_their_names():
    labels = Labels.of(["b", None, "a", "b"])
    assert labels.names == ("a", "b")
    assert labels.values() == ["b", None, "a", "b"]
    assert labels.counts().tolist() == [1, 2]
    assert labels.take(np.array([0, 1])).names == ("b",)
    joined = Labels.concat([labels, Labels.of(["c", "a"])])
    assert joined.values() == ["b", None, "a", "b", "c", "a"]
    assert joined.names == ("a", "b", "c")
