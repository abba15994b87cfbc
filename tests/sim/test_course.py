"""Courses against SimPy's own processes: the same steps at the same times, cut off or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from modelium.sim.course import Course, LostError, Steps

Log = list[tuple[float, str]]


def steps(env: simpy.Environment, delays: list[int], patience: int, log: Log) -> Steps:
    """Wait for each delay; when cut off, go on with the next, `patience` times."""
    for k, delay in enumerate(delays):
        try:
            got = yield env.timeout(delay, value=f"step {k}")
            log.append((env.now, got))
        except (LostError, simpy.Interrupt) as lost:
            why = lost.cause if isinstance(lost, simpy.Interrupt) else str(lost)
            log.append((env.now, f"lost: {why}"))
            if patience == 0:
                return
            patience -= 1
    log.append((env.now, "end"))


def played(
    begin: Callable[[simpy.Environment, Steps], Callable[[str], None]],
    delays: list[int],
    patience: int,
    cuts: list[int],
) -> Log:
    env, log = simpy.Environment(), list[tuple[float, str]]()
    way = list[Callable[[str], None]]()
    for at in cuts:  # before the steps: a step that is due at the same time comes later
        env.timeout(at).callbacks.append(lambda event, at=at: way[0](f"cut {at}"))
    way.append(begin(env, steps(env, delays, patience, log)))
    env.run()
    return log


def as_course(env: simpy.Environment, steps: Steps) -> Callable[[str], None]:
    course = Course(env, steps)
    course.begin()
    return course.cut_off


def as_process(env: simpy.Environment, steps: Steps) -> Callable[[str], None]:
    process = env.process(steps)
    return lambda why: process.interrupt(why) if process.is_alive else None


@given(
    delays=st.lists(st.integers(0, 9), max_size=6),
    patience=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 30), max_size=3, unique=True),
)
def test_a_course_goes_as_a_process_goes(delays: list[int], patience: int, cuts: list[int]) -> None:
    course, process = (played(way, delays, patience, cuts) for way in (as_course, as_process))
    assert course == process


def test_a_course_begins_at_once_and_takes_no_event_to_end() -> None:
    env, log = simpy.Environment(), list[tuple[float, str]]()
    Course(env, steps(env, [], 0, log)).begin()
    assert log == [(0, "end")]
    assert env.peek() == float("inf")


def test_who_is_cut_off_when_its_last_step_is_due_does_not_end_well() -> None:
    for way in (as_course, as_process):
        assert played(way, [3, 4], 0, [7]) == [(3, "step 0"), (7, "lost: cut 7")]


def test_who_is_cut_off_twice_at_an_instant_is_told_once_if_that_ends_it() -> None:
    env, log = simpy.Environment(), list[tuple[float, str]]()
    course = Course(env, steps(env, [9], 0, log))
    course.begin()
    for why in ("first", "second"):
        course.cut_off(why)
    env.run()
    assert log == [(0, "lost: first")]


def test_what_goes_wrong_in_a_step_is_not_kept_quiet() -> None:
    env = simpy.Environment()

    def wrong() -> Steps:
        yield env.timeout(1)
        raise ZeroDivisionError

    Course(env, wrong()).begin()
    with pytest.raises(ZeroDivisionError):
        env.run()
