"""Columns to Arrow and back, against Arrow's own conversions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelium.results import arrow

NUMBERS = st.sampled_from(["f8", "i4", "i8", "?"]).flatmap(
    lambda kind: arrays(kind, st.integers(0, 40))
)
NAMES = st.lists(st.sampled_from([None, "a", "", "Łódź", "日本"]), max_size=40)
CUT = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(NUMBERS, CUT)
def test_numbers_go_there_and_back(values: np.ndarray, cut: tuple[int, int]) -> None:
    there = arrow.numbers(values)
    there.validate(full=True)
    assert there.equals(pa.array(values)) or np.isnan(values).any()
    np.testing.assert_array_equal(arrow.array(there), values)
    part = there[cut[0] :]
    np.testing.assert_array_equal(arrow.array(part), values[cut[0] :])
    chunks = pa.chunked_array([there, part, there[:0]], type=there.type)
    np.testing.assert_array_equal(arrow.array(chunks), np.concatenate([values, values[cut[0] :]]))


@given(NAMES, CUT)
def test_names_and_what_is_missing_go_there_and_back(
    values: list[str | None], cut: tuple[int, int]
) -> None:
    known = [name for name in dict.fromkeys(values) if name is not None]
    codes = np.array([known.index(v) if v is not None else -1 for v in values], np.int32)
    there = arrow.names(codes, known)
    there.validate(full=True)
    assert there.to_pylist() == values
    part = there[cut[0] :]
    np.testing.assert_array_equal(arrow.codes(part), codes[cut[0] :])
    absent = [value is None for value in values]
    np.testing.assert_array_equal(arrow.missing(part.indices), absent[cut[0] :])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_are_those_that_arrow_makes(values: list[str]) -> None:
    there = arrow.texts(values)
    there.validate(full=True)
    assert there.equals(pa.array(values, pa.string()))


def test_of_columns_without_a_chunk_nothing_is_left() -> None:
    assert len(arrow.array(pa.chunked_array([], pa.float64()))) == 0


@pytest.mark.parametrize("heavy", ["pandas", "pyarrow.compute"])
def test_it_imports_nothing_heavy(heavy: str) -> None:
    code = (
        "import sys, numpy as np; from modelium.results import arrow;"
        "arrow.array(arrow.numbers(np.zeros(3)));"
        "arrow.codes(arrow.names(np.array([0, -1]), ['a']));"
        f"sys.exit({heavy!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
