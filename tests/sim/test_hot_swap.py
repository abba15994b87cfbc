"""Loading as part of the queue: the hot-swap server and idle timeouts with a queue behind them."""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelium.control.costs import ConfiguredFacts, Stages
from modelium.core import Policy
from modelium.policies.gdsf import Gdsf
from modelium.policies.idle_ttl import BUSY_S, IdleTtl
from modelium.policies.landlord import Landlord
from modelium.policies.lfu import Lfu
from modelium.policies.lfuda import Lfuda
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.sim.spec import Faults, Settings

POLICIES = [Lru, Lfu, Lfuda, RandomEvict, Gdsf, Landlord]


def loads_take(cold_s: float, wake_s: float = 0.0) -> Stages:
    """Fixed times, whatever the size; what leaves is gone at once."""
    return Stages(cold_s, 0.0, 0.0, 0.0, 0.0, 0.0, (wake_s, wake_s), (0.0, 0.0), 0.0)


def pollaczek(rate: float, first: float, second: float) -> float:
    """Mean wait with Poisson arrivals and these moments of the service time."""
    return rate * second / (2 * (1 - rate * first))


# The hot-swap server


def check_hot_swap(
    lab: SimpleNamespace, policy: Policy, k: int, c: int, rate: float, load_s: float, law: str
) -> None:
    """K equally popular models, room for C: misses are independent with odds q = 1 - C/K.

    The formula is for a server that serves and loads in order of arrival. The simulated GPU does
    better: it serves resident models while others load. So requests enter the cluster one at a
    time, far apart; each takes its service, and a load on a miss, and the queue before the door is
    the Lindley recursion on these times.
    """
    n = 2_500
    rng = np.random.default_rng(16)
    service = rng.exponential(1.0, n) if law == "exp" else np.ones(n)
    asked = lab.trace(np.arange(1, n + 1) * 100.0, rng.integers(0, k, n), service_s=service)
    served = lab.play(asked, policy, gpu_bytes=(c,), stages=loads_take(load_s))
    missed = served.cold != ""
    q = 1 - c / k
    assert np.allclose(served.wait_s, load_s * missed, atol=1e-6)
    assert lab.near(missed, q) == ""
    assert lab.near((missed[1:] - q) * (missed[:-1] - q) + 1, 1.0) == ""  # one tells nothing
    square = 2.0 if law == "exp" else 1.0
    exact = pollaczek(rate, 1 + q * load_s, square + 2 * q * load_s + q * load_s**2)
    waits = queue(served.sojourn_s, np.random.default_rng(17).exponential(1 / rate, n))
    assert lab.near(waits, exact) == ""


def queue(times: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Lindley: waits before a server that takes `times`."""
    walk = np.concatenate([[0.0], np.cumsum(times[:-1] - gaps[1:])])
    waits: np.ndarray = walk - np.minimum.accumulate(walk)
    return waits


@pytest.mark.parametrize("make", POLICIES)
def test_equal_models_miss_alike_under_every_eviction_rule(
    lab: SimpleNamespace, make: Callable[[], Policy]
) -> None:
    check_hot_swap(lab, make(), 8, 3, 0.2, 2.0, "exp")


@pytest.mark.parametrize(
    ("k", "c", "rate", "load_s", "law", "wait"),
    [
        (2, 1, 0.3, 2.0, "exp", 2.25), (10, 8, 0.5, 1.5, "exp", 2.178571),
        (4, 2, 0.25, 3.0, "det", 2.833333), (4, 2, 0.25, 3.0, "exp", 3.166667),
    ],
)  # fmt: skip
def test_a_hot_swap_server_waits_as_its_closed_form(
    lab: SimpleNamespace, k: int, c: int, rate: float, load_s: float, law: str, wait: float
) -> None:
    q, square = 1 - c / k, 2.0 if law == "exp" else 1.0
    exact = pollaczek(rate, 1 + q * load_s, square + 2 * q * load_s + q * load_s**2)
    assert exact == pytest.approx(wait, abs=1e-6)
    check_hot_swap(lab, Lru(), k, c, rate, load_s, law)


@pytest.mark.parametrize("make", POLICIES)
def test_a_gpu_that_swaps_for_every_request_is_mg1_with_the_load_as_service(
    lab: SimpleNamespace, make: Callable[[], Policy]
) -> None:
    """Room for one, and no model is asked twice while somebody waits: q = 1, order of arrival.

    Here the queue is inside the cluster: misses are declined while the copy there is busy, and
    offered again, the longest wait first, when it is idle.
    """
    n, models, rate, load_s = 1_200, 200, 0.2, 2.0
    service = lab.exponential(n)
    arrivals = lab.poisson(rate, n)
    asked = lab.trace(arrivals, np.arange(n) % models, service_s=service)
    served = lab.play(asked, make(), stages=loads_take(load_s))
    assert (served.cold != "").all()
    gaps = np.diff(arrivals, prepend=0.0)
    assert np.allclose(served.wait_s - load_s, queue(served.service_s + load_s, gaps), atol=1e-5)


def test_with_one_place_misses_are_those_of_repeats(lab: SimpleNamespace) -> None:
    """Skewed popularity and C = 1: the miss ratio is 1 - sum of p^2."""
    p, n = (0.5, 0.3, 0.2), 5_000
    models = np.random.default_rng(18).choice(3, n, p=p)
    served = lab.play(lab.trace(np.arange(1.0, n + 1), models), Lru())
    assert lab.near(served.cold != "", 1 - sum(each * each for each in p)) == ""


# Idle timeouts with a queue (M/G/1 with set-up times)


def set_up_queue(
    rate: float, first: float, second: float, service_s: float = 1.0
) -> tuple[float, float]:
    """Mean wait, and busy periods begun per request, for set-up times with these moments.

    Exponential service; Welch, Operations Research 12(5), 1964.
    """
    wait = pollaczek(rate, service_s, 2 * service_s**2)
    wait += (2 * first + rate * second) / (2 * (1 + rate * first))
    return wait, (1 - rate * service_s) / (1 + rate * first)


@pytest.mark.parametrize(
    ("rate", "idle_s", "load_s", "wait", "cold"),
    [
        (0.5, 2.0, 5.0, 3.155882, 0.095817),
        (0.2, 5.0, 10.0, 4.488831, 0.169553),
        (0.1, 10.0, 30.0, 13.226939, 0.157390),
    ],
)
def test_an_idle_timeout_makes_a_queue_with_set_up_times(
    lab: SimpleNamespace, rate: float, idle_s: float, load_s: float, wait: float, cold: float
) -> None:
    p, n = exp(-rate * idle_s), 12_000
    exact, begun = set_up_queue(rate, p * load_s, p * load_s**2)
    assert (exact, p * begun) == pytest.approx((wait, cold), abs=1e-6)
    policy = IdleTtl(idle_s=idle_s, qps_min=float("inf"))
    asked = lab.trace(lab.poisson(rate, n), service_s=lab.exponential(n))
    served = lab.play(asked, policy, stages=loads_take(load_s))
    assert lab.near(served.wait_s, exact) == ""
    assert lab.near(began(served, "load"), p * begun) == ""
    # A load also delays those that arrive during it, rate * load_s of them on average.
    assert lab.near(served.cold != "", p * begun * (1 + rate * load_s)) == ""


def began(served: Any, kind: str) -> np.ndarray:
    """Which requests began an action of this kind: it starts at the instant of their arrival."""
    table = served.run.decisions.to_pydict()
    at_s = [t for t, k in zip(table["at_s"], table["kind"], strict=True) if k == kind]
    flags = np.zeros(len(served.arrival_s), bool)
    flags[np.searchsorted(served.arrival_s, np.array(at_s) - 1e-9)] = True
    assert flags.sum() == len(at_s)
    return flags


@pytest.mark.parametrize(
    ("rate", "mean_s", "sleep_s", "wake_s", "idle_s", "load_s", "wait", "wakes", "colds"),
    [
        (0.1, 1.0, 10.0, 2.0, 30.0, 40.0, 5.396530, 0.226711, 0.035484),
        (0.05, 2.0, 20.0, 1.0, 60.0, 30.0, 2.917899, 0.262504, 0.041087),
    ],
)
def test_an_idle_timeout_in_two_tiers_wakes_and_loads(
    lab: SimpleNamespace,
    rate: float,
    mean_s: float,
    sleep_s: float,
    wake_s: float,
    idle_s: float,
    load_s: float,
    wait: float,
    wakes: float,
    colds: float,
) -> None:
    gone, n = exp(-rate * idle_s), 10_000
    asleep = exp(-rate * sleep_s) - gone
    first, second = (asleep * wake_s**k + gone * load_s**k for k in (1, 2))
    exact, begun = set_up_queue(rate, first, second, mean_s)
    assert (exact, asleep * begun, gone * begun) == pytest.approx((wait, wakes, colds), abs=1e-6)
    policy = IdleTtl(idle_s=idle_s, qps_min=float("inf"), sleep_s=sleep_s)
    asked = lab.trace(lab.poisson(rate, n), service_s=lab.exponential(n, mean_s))
    served = lab.play(asked, policy, stages=loads_take(load_s, wake_s))
    assert lab.near(served.wait_s, exact) == ""
    assert lab.near(began(served, "wake"), asleep * begun) == ""
    assert lab.near(began(served, "load"), gone * begun) == ""


def test_set_up_times_may_be_random(lab: SimpleNamespace) -> None:
    """One load in four takes three times as long."""
    rate, idle_s, load_s, slow, n = 0.2, 5.0, 10.0, 0.25, 10_000
    p = exp(-rate * idle_s)
    first = p * load_s * (1 + 2 * slow)
    exact, _ = set_up_queue(rate, first, p * load_s**2 * (1 + 8 * slow))
    settings = Settings(faults=Faults(slow_load=slow, slow_factor=3.0), drain_s=1e5)
    asked = lab.trace(lab.poisson(rate, n), service_s=lab.exponential(n))
    policy = IdleTtl(idle_s=idle_s, qps_min=float("inf"))
    served = lab.play(asked, policy, stages=loads_take(load_s), settings=settings, seed=5)
    assert lab.near(served.wait_s, exact) == ""


class RandomLoads(ConfiguredFacts):
    """Loads take exponential times."""

    def __init__(self, mean_s: float) -> None:
        super().__init__()
        self.mean_s, self.rng = mean_s, np.random.default_rng(19)

    def stages(self, model: str) -> Stages:
        return loads_take(self.rng.exponential(self.mean_s))


def test_exponential_set_up_times_for_every_busy_period(lab: SimpleNamespace) -> None:
    """E[D^2] = 2 E[D]^2; the timeout is a hair, as below."""
    rate, load_s, unit_s, n = 0.5, 5.0, 0.02, 6_000
    exact, begun = set_up_queue(rate, load_s, 2 * load_s**2)
    assert exact == pytest.approx(6.0, abs=1e-9)
    asked = lab.trace(lab.poisson(rate / unit_s, n), service_s=unit_s * lab.exponential(n))
    policy = IdleTtl(idle_s=0.0, qps_min=float("inf"))
    served = lab.play(asked, policy, facts=RandomLoads(load_s * unit_s))
    assert lab.near(served.wait_s / unit_s, exact) == ""
    assert lab.near(began(served, "load"), begun) == ""


def test_a_timeout_of_nothing_loads_for_every_busy_period(lab: SimpleNamespace) -> None:
    """The timeout is a hair, and time is stretched to make `BUSY_S` one, too."""
    rate, load_s, unit_s, n = 0.5, 5.0, 0.02, 5_000
    exact, begun = set_up_queue(rate, load_s, load_s**2)
    assert (exact, begun) == pytest.approx((4.214286, 0.142857), abs=1e-6)
    assert unit_s > 10 * BUSY_S
    asked = lab.trace(lab.poisson(rate / unit_s, n), service_s=unit_s * lab.exponential(n))
    policy = IdleTtl(idle_s=0.0, qps_min=float("inf"))
    served = lab.play(asked, policy, stages=loads_take(load_s * unit_s))
    assert lab.near(served.wait_s / unit_s, exact) == ""
    assert lab.near(began(served, "load"), begun) == ""
