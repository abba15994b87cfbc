"""Timeouts are exact, the trap of the first configuration is closed, tiers follow each other."""

from __future__ import annotations

import pytest

from modelium.core import Limits, Load, Sleep, Unload, Wake
from modelium.policies.idle_ttl import IdleTtl

INF = float("inf")


def when(w: object, kind: type) -> list[float]:
    return [at for at, action in w.log if isinstance(action, kind)]  # type: ignore[attr-defined]


def test_a_copy_leaves_exactly_idle_s_after_its_last_answer(world: type) -> None:
    w = world({"a": 10}, service_s=2.5).obey(IdleTtl(idle_s=30.0, qps_min=INF))
    w.use("a", apart_s=17.25)  # answered at 2.5
    w.use("a", apart_s=100.0)  # arrives at 17.25, answered at 19.75
    assert when(w, Unload) == pytest.approx([49.75], abs=2e-6)
    assert w.residents() == []


def test_a_busy_copy_is_never_timed_out(world: type) -> None:
    w = world({"a": 10}, service_s=500.0).obey(IdleTtl(idle_s=7.0, qps_min=INF))
    w.use("a", apart_s=499.0)
    assert w.residents() == ["a"]
    w.cluster.run(100.0)
    [gone] = when(w, Unload)
    assert 507.0 <= gone <= 507.0 + 2e-6


@pytest.mark.parametrize("idle_s", [0.0, 1e-9])
def test_no_patience_at_all_unloads_within_a_millisecond(world: type, idle_s: float) -> None:
    w = world({"a": 10}, service_s=2.0).obey(IdleTtl(idle_s=idle_s, qps_min=INF))
    w.use("a", "a", apart_s=5.0)
    assert when(w, Unload) == pytest.approx([2.0, 7.0], abs=2e-3)


def test_requests_before_the_timeout_begin_it_anew(world: type) -> None:
    w = world({"a": 10}).obey(IdleTtl(idle_s=30.0, qps_min=INF))
    w.use(*"aaaaaaaaaa", apart_s=29.0)
    assert when(w, Unload) == []
    w.cluster.run(100.0)
    assert when(w, Unload) == pytest.approx([9 * 29.0 + 1.0 + 30.0], abs=2e-6)


def test_the_rate_matters_only_over_a_window_longer_than_the_timeout(world: type) -> None:
    """A window as long as the timeout is the trap: nothing in it, so the rate is always 0."""

    def gone_at(window_s: float | None) -> float:
        policy = IdleTtl(idle_s=100.0, qps_min=0.1, window_s=window_s)
        w = world({"a": 10}).obey(policy)
        w.use(*["a"] * 100, apart_s=2.0)  # the last answer is at 199 s
        w.cluster.run(10_000.0)
        [at] = when(w, Unload)
        return at

    assert gone_at(100.0) == pytest.approx(299.0, abs=1e-3)
    # With 4 * idle_s, 100 requests stay above 0.1/s until fewer than 40 of them are within 400 s.
    assert gone_at(None) == pytest.approx(199.0 + 400.0 - 80.0, abs=120.0)


def test_under_pressure_the_least_recently_used_leaves_early(world: type) -> None:
    w = world(dict.fromkeys("abc", 30), [60]).obey(IdleTtl())
    w.use(*"abac")
    assert [name.split("#")[0] for name in w.did(Unload)] == ["b"]


def test_a_pinned_model_outlives_its_timeout(world: type) -> None:
    w = world({"a": 10}, more={"a": {"pinned": True}}).obey(IdleTtl(idle_s=5.0, qps_min=INF))
    w.use("a", apart_s=1000.0)
    assert w.did(Unload) == []


def test_two_tiers_sleep_first_and_unload_later_both_on_time(world: type) -> None:
    w = world({"a": 10}, more={"a": {"asleep_bytes": 1 << 30}})
    w.obey(IdleTtl(idle_s=30.0, sleep_s=10.0, qps_min=INF))
    w.use("a", apart_s=100.0)  # answered at 1
    assert when(w, Sleep) == pytest.approx([11.0], abs=2e-6)
    assert when(w, Unload) == pytest.approx([31.0], abs=2e-6)


def test_a_sleeper_that_is_asked_wakes_and_its_time_begins_anew(world: type) -> None:
    w = world({"a": 10}).obey(IdleTtl(idle_s=30.0, sleep_s=10.0, qps_min=INF))
    w.use("a", apart_s=20.0)
    w.use("a", apart_s=100.0)  # wakes at 20, answered at 21
    assert w.did(Load) == ["a"]
    assert when(w, Wake) == [20.0]
    assert when(w, Sleep) == pytest.approx([11.0, 31.0], abs=2e-6)
    assert when(w, Unload) == pytest.approx([51.0], abs=2e-6)


def test_without_host_memory_the_first_tier_is_skipped(world: type) -> None:
    w = world({"a": 10}, host_gib=5).obey(IdleTtl(idle_s=30.0, sleep_s=10.0, qps_min=INF))
    w.use("a", apart_s=100.0)
    assert w.did(Sleep) == []
    assert when(w, Unload) == pytest.approx([31.0], abs=2e-6)


def test_what_cannot_sleep_skips_the_first_tier(world: type) -> None:
    w = world({"a": 10}, more={"a": {"can_sleep": False}})
    w.obey(IdleTtl(idle_s=30.0, sleep_s=10.0, qps_min=INF))
    w.use("a", apart_s=100.0)
    assert w.did(Sleep) == []
    assert when(w, Unload) == pytest.approx([31.0], abs=2e-6)


def test_the_minimum_residency_is_kept_and_then_the_timeout_holds(world: type) -> None:
    w = world({"a": 10}, limits=Limits(min_residency_s=200.0))
    w.obey(IdleTtl(idle_s=30.0, qps_min=INF))
    w.use("a", apart_s=500.0)
    [gone] = when(w, Unload)
    assert 200.0 <= gone <= 260.0
