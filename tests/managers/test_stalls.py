"""Since when an instance has made nothing, on a clock that the test moves."""

from __future__ import annotations

import pytest

from modelium.managers import hang_detector


def test_it_counts_from_the_last_move_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(hang_detector.time, "monotonic", lambda: clock[0])
    made = hang_detector.Stalls()

    def at(now_s: float, work: float, instance: str = "a") -> float:
        clock[0] = now_s
        return made.still_s(instance, work)

    assert at(100, 5) == 0
    assert at(107, 5) == 7
    assert at(108, 6) == 0
    assert at(109, 6) == 1
    assert at(109, 0, "b") == 0, "each has a clock of its own"
    made.over("a")
    assert at(120, 6) == 0
    made.over("never seen")
