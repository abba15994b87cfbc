"""Sizes and durations as people write them, and as they are printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.errors import ConfigError
from modelium.units import (
    GIB,
    MIB,
    counted,
    format_bytes,
    format_seconds,
    listed,
    parse_bytes,
    parse_bytes_per_s,
    parse_seconds,
    ps,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("1,500 MB", 1_500_000_000),
        ("1_000", 1000),
        (".5GiB", GIB // 2),
        ("1e3", 1000),
        (" 7 ", 7),
        ("+3KiB", 3072),
        (123, 123),
        (1.6, 2),
        (0, 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | float, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "1,5GB", "-5GB", "1 2", "80GiBs", "nan", float("nan"), -1, float("inf"), True],
)
def test_what_is_no_size_is_refused_by_its_name(text: str | float) -> None:
    with pytest.raises(ConfigError, match="is not a size in bytes such as 80GiB"):
        parse_bytes(text)


def test_a_unit_in_the_wrong_case_is_suggested_not_guessed() -> None:
    with pytest.raises(ConfigError, match="unknown unit 'gib'"):
        parse_bytes("5gib")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5min", 300), ("1h", 3600), ("2d", 172_800), ("3 ms", 0.003), (4, 4)],
)
def test_durations_are_read_with_their_unit(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


def test_a_limit_that_does_not_exist_is_infinite() -> None:
    assert parse_seconds("inf") == parse_seconds(float("inf")) == float("inf")


def test_bandwidths_may_say_per_second() -> None:
    assert parse_bytes_per_s("6GB/s") == parse_bytes_per_s("6GB") == parse_bytes_per_s(6e9) == 6e9
    with pytest.raises(ConfigError, match="a bandwidth such as 6GB/s"):
        parse_bytes_per_s("fast")


@given(st.integers(0, 10**18))
def test_a_size_in_bytes_is_read_exactly(n: int) -> None:
    assert parse_bytes(n) == pytest.approx(n, rel=1e-15)
    assert parse_bytes(f"{n % 10**15:,}B") == n % 10**15


@given(st.floats(0, 1e6))
def test_picoseconds_are_the_nearest_whole_ones(seconds: float) -> None:
    assert abs(ps(seconds) / 1e12 - seconds) <= 0.5e-12 + seconds * 1e-15


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (15 * GIB, "15.0 GiB"),
        (640 * MIB, "640 MiB"),
        (-GIB, "-1.0 GiB"),
    ],
)
def test_sizes_are_printed_short(n: int, text: str) -> None:
    assert format_bytes(n) == text


@pytest.mark.parametrize(
    ("s", "text"),
    [
        (0.0, "0 s"),
        (0.012, "12 ms"),
        (3.44, "3.4 s"),
        (300, "5 min"),
        (9000, "2.5 h"),
        (259_200, "3.0 d"),
        (float("inf"), "inf d"),
    ],
)
def test_durations_are_printed_as_a_person_would(s: float, text: str) -> None:
    assert format_seconds(s) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 GPUs"), (1, "1 GPU"), (2, "2 GPUs"), (2500, "2,500 GPUs")]
)
def test_numbers_of_things(n: int, text: str) -> None:
    assert counted(n, "GPU") == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, ""),
        (1, "gpu0"),
        (3, "gpu0, gpu1, gpu2"),
        (4, "gpu0, gpu1, gpu2 and 1 more"),
        (1004, "gpu0, gpu1, gpu2 and 1,001 more"),
    ],
)
def test_of_many_names_the_first_are_printed(n: int, text: str) -> None:
    assert listed([f"gpu{i}" for i in range(n)]) == text
