"""Rates over a window: against counting the events themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.metrics.recent_rates import Window

GAPS = st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.999, 1.0, 2.5, 9.0, 30.0, 75.0, 500.0]))


@given(GAPS, st.sampled_from([0.0, 0.4, 5.0, 59.5, 61.0, 1000.0]), st.sampled_from([10.0, 60.0]))
def test_the_rate_is_that_of_whole_seconds(gaps: list[float], after_s: float, span: float) -> None:
    window, now_s, events = Window(), 12_345.678, []
    for gap in gaps:
        now_s += gap
        window.add(now_s)
        events.append(now_s)
    now_s += after_s
    begin_s = (now_s - span) // 1 + 1
    wanted = sum(event >= begin_s for event in events) / (now_s - begin_s)
    assert window.rate_per_s(now_s, span) == pytest.approx(wanted)
    assert span - 1 <= now_s - begin_s <= span
    assert window.last_s == (events[-1] if events else float("-inf"))


@pytest.mark.parametrize("now_s", [0.0, 0.5, 3.0])
def test_a_clock_that_has_just_begun(now_s: float) -> None:
    window = Window()
    window.add(now_s)
    assert 0 < window.rate_per_s(now_s, 10.0) <= 1
