"""Busy shares: the bins add up to the time in which there was work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.live.requests.gpu_busy import BIN_S, Busy


@given(st.lists(st.tuples(st.floats(0, 12), st.booleans(), st.booleans()), max_size=40))
def test_the_bins_add_up(steps: list[tuple[float, bool, bool]]) -> None:
    now_s, working, busy_s = 0.0, 0, 0.0
    busy, rows = Busy(lambda: now_s), []
    for wait_s, begin, take in steps:
        now_s += wait_s
        busy_s += wait_s if working else 0.0
        if begin or not working:
            busy.begin(("gpu0",))
            working += 1
        else:
            busy.end(("gpu0",))
            working -= 1
        if take:
            rows += busy.take()
            so_far = [*rows, *busy.under_way()]
            assert sum((end - start) * share for _, start, end, *_, share in so_far) == (
                pytest.approx(busy_s)
            )
    rows += busy.take() + busy.under_way()
    assert rows == sorted(rows)
    assert len({start for _, start, *_ in rows}) == len(rows)
    assert sum((end - start) * share for _, start, end, *_, share in rows) == pytest.approx(busy_s)
    assert all(0 <= share <= 1 for *_, share in rows)
    assert all(end - start <= BIN_S for _, start, end, *_ in rows)
