"""When a failed load is tried again, and when no more."""

from __future__ import annotations

from modelium.live.engines.backoff import Failures, Patience


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_each_rest_is_twice_as_long_up_to_the_longest() -> None:
    clock = Clock()
    failures = Failures(clock, Patience(tries=6, first_s=2.0, most_s=10.0))
    rests = []
    for _ in range(5):
        failures.note("a", ("gpu0",), "broken")
        rests.append(failures.left_s("a"))
        assert failures.rests("a")
        clock.now_s += failures.left_s("a")
        assert not failures.rests("a")
    assert rests == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_after_the_last_try_the_model_is_failed_until_it_is_forgiven() -> None:
    clock = Clock()
    failures = Failures(clock, Patience(tries=2, first_s=1.0, forgive_s=100.0))
    failures.note("a", ("gpu0",), "first cause")
    clock.now_s = 1.0
    trouble = failures.note("a", ("gpu1",), "second cause", log="the end of the log")
    assert trouble.failed
    assert (trouble.why, trouble.log, trouble.gpus) == (
        "second cause", "the end of the log", {"gpu0", "gpu1"}
    )  # fmt: skip
    clock.now_s = 100.9
    assert failures.of("a") is trouble
    clock.now_s = 101.0
    assert failures.of("a") is None
    assert not failures.rests("a")


def test_running_out_of_memory_is_tried_again_at_once_but_only_once() -> None:
    failures = Failures(Clock(), Patience(tries=2))
    failures.note("a", ("gpu0",), "out of memory", oom=True)
    assert not failures.rests("a")
    failures.note("a", ("gpu0",), "out of memory", oom=True)
    assert failures.rests("a")


def test_a_success_makes_up_for_all_failures() -> None:
    failures = Failures(Clock(), Patience(tries=2))
    failures.note("a", ("gpu0",), "broken")
    failures.forget("a")
    assert not failures.note("a", ("gpu0",), "broken").failed
