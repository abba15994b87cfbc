"""Meters: rates and shares of time, against their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.live.requests.meters import LiveMeters


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=60))
def test_shares_of_all_requests_add_up_to_the_busy_time(steps: list[tuple[float, bool]]) -> None:
    clock = Clock()
    meters = LiveMeters(clock, lambda: 0)
    open_, busy_s, shares = [], 0.0, 0.0
    for wait_s, begin in steps:
        clock.now_s += wait_s
        busy_s += wait_s if open_ else 0.0
        if begin or not open_:
            open_.append(meters.begin())
        else:
            idle, share = meters.end(open_.pop(0))
            shares += share
            assert idle == (not open_) == (not meters.busy)
    while open_:
        shares += meters.end(open_.pop())[1]
    assert shares == pytest.approx(busy_s)
    assert math.isfinite(meters.idle_since_s)


def test_requests_that_are_there_together_share_alike() -> None:
    clock = Clock()
    meters = LiveMeters(clock, lambda: 0)
    first = meters.begin()
    clock.now_s = 2.0
    second = meters.begin()
    clock.now_s = 6.0
    assert meters.end(first) == (False, 4.0)  # 2 s alone, 4 s with another one
    assert meters.end(second) == (True, 2.0)
    assert meters.idle_since_s == 6.0
    assert (meters.served, meters.last_used_s) == (2, 2.0)
