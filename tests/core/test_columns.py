"""Long columns: the same numbers as NumPy's own functions give, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.results.columns import ROWS, blocks, columns, counts, grouped, owned, percentiles

PERCENTS = (0, 1, 50, 50, 90, 99, 100)


def test_columns_have_their_types_and_values() -> None:
    made = columns(5, a=(np.int8, 0), b=(np.float64, np.nan), c=(np.int32, np.arange(5)))
    assert [made[name].dtype for name in "abc"] == [np.int8, np.float64, np.int32]
    assert made["a"].tolist() == [0] * 5
    assert np.isnan(made["b"]).all()
    assert made["c"].tolist() == [0, 1, 2, 3, 4]
    for column in made.values():
        assert column.flags.c_contiguous
        assert column.flags.aligned
        assert column.flags.writeable


def test_columns_of_one_block_do_not_overlap() -> None:
    made = columns(3, a=(np.int8, 0), b=(np.int64, -1), c=(np.int8, 2))
    made["b"][:] = 7
    assert made["a"].tolist() == [0, 0, 0]
    assert made["c"].tolist() == [2, 2, 2]


def test_what_is_fit_for_kernels_is_not_copied() -> None:
    fit, locked = np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    locked.flags.writeable = False
    assert owned(fit, np.int32) is fit
    for unfit in (locked, fit[::2], fit.astype(np.int64), [0, 1]):
        made = owned(unfit, np.int32)
        assert made.dtype == np.int32
        assert made.flags.c_contiguous
        assert made.flags.writeable
        assert made.tolist() == list(unfit)


@pytest.mark.parametrize("n", [0, 1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS])
def test_blocks_cover_all_rows_once(n: int) -> None:
    rows = np.arange(n)
    assert np.array_equal(np.concatenate([[], *(rows[part] for part in blocks(n))]), rows)


@pytest.mark.parametrize("n", [1, 7, 8, 300, 1 << 15])
def test_counts_and_groups_are_those_of_bincount_and_a_stable_sort(n: int) -> None:
    rng = np.random.default_rng(n)
    codes = rng.integers(0, n, 2 * ROWS + 17).astype(np.int32)
    values = rng.random(len(codes))
    sizes = counts(codes, n)
    assert np.array_equal(sizes, np.bincount(codes, minlength=n))
    expected = np.split(values[np.argsort(codes, kind="stable")], np.cumsum(sizes)[:-1])
    for ours, theirs in zip(grouped(values, codes, sizes), expected, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("n", [2, 20])
def test_rows_with_no_code_are_not_counted(n: int) -> None:
    assert counts(np.array([-1, 1, -1, 0, 1], np.int32), n).tolist() == [1, 2] + [0] * (n - 2)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_of_few_are_numpys_to_the_bit(values: list[float]) -> None:
    column = np.array(values)
    assert percentiles(column, PERCENTS) == np.percentile(column, PERCENTS).tolist()


@given(st.sampled_from(["random", "alike", "two", "late", "rising"]), st.integers(0, 1000))
def test_percentiles_of_many_are_numpys_to_the_bit(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1 << 15, 1 << 17))
    column = {
        "random": lambda: rng.exponential(1.0, n),
        "alike": lambda: np.where(rng.random(n) < 0.6, 0.1, rng.random(n)),
        "two": lambda: rng.integers(0, 2, n).astype(float),
        # The sample sees only zeros: all has to be sorted.
        "late": lambda: np.where(np.arange(n) % (n >> 14), rng.random(n), 0.0),
        "rising": lambda: np.arange(n) * 0.1,
    }[kind]()
    before = column.copy()
    assert percentiles(column, PERCENTS) == np.percentile(column, PERCENTS).tolist()
    assert np.array_equal(column, before)
