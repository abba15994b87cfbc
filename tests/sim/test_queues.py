"""Single queues against their closed forms (Kleinrock, Queueing Systems, 1975, unless said).

Statistical tests allow four standard errors of 20 batch means. Time is in units of the mean
service time.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, factorial, log
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import brentq

from modelium.core import Slo
from modelium.sim.spec import Admission, Settings
from modelium.traces.trace import Labels

N = 300_000


def erlang_b(a: float, c: int) -> float:
    """Share of lost arrivals with offered load `a` and `c` servers."""
    lost = 1.0
    for k in range(1, c + 1):
        lost = a * lost / (k + a * lost)
    return lost


def erlang_c(a: float, c: int) -> float:
    """Share of arrivals that wait."""
    lost = erlang_b(a, c)
    return lost / (1 - a / c * (1 - lost))


def draw(law: str, n: int = N) -> np.ndarray:
    """Service times by name of their law."""
    rng = np.random.default_rng(3)
    match law:
        case "exp":
            return rng.exponential(1.0, n)
        case "det":
            return np.ones(n)
        case "h2":
            return rng.exponential(np.where(rng.random(n) < 0.9, 0.5, 5.5))
        case "lognormal":
            return rng.lognormal(-log(5) / 2, log(5) ** 0.5, n)
    assert law == "bimodal"
    return np.where(rng.random(n) < 0.95, 0.5, 10.5)


SQUARE = {"exp": 2.0, "det": 1.0, "h2": 2 * (0.9 * 0.25 + 0.1 * 30.25), "lognormal": 5.0,
          "bimodal": 0.95 * 0.25 + 0.05 * 110.25}  # fmt: skip
"""Second moments."""


@pytest.mark.parametrize(
    ("law", "rate", "wait"),
    [
        ("exp", 0.5, 1.0), ("exp", 0.8, 4.0), ("exp", 0.9, 9.0),
        ("det", 0.5, 0.5), ("det", 0.8, 2.0), ("det", 0.9, 4.5),
        ("h2", 0.7, 7.583333), ("lognormal", 0.7, 5.833333), ("bimodal", 0.6, 4.3125),
    ],
)  # fmt: skip
def test_one_server_waits_as_pollaczek_and_khinchine_say(
    lab: SimpleNamespace, law: str, rate: float, wait: float
) -> None:
    assert rate * SQUARE[law] / (2 * (1 - rate)) == pytest.approx(wait, abs=1e-6)
    n = N if rate < 0.9 else 5 * N
    served = lab.play(lab.trace(lab.poisson(rate, n), service_s=draw(law, n)))
    assert lab.near(served.wait_s, wait) == ""


@pytest.mark.parametrize(
    ("rate", "p95", "p99"),
    [(0.5, 5.991465, 9.210340), (0.8, 14.978661, 23.025851), (0.9, 29.957323, 46.051702)],
)
def test_mm1_sojourn_times_are_exponential(
    lab: SimpleNamespace, rate: float, p95: float, p99: float
) -> None:
    n = 4 * N if rate < 0.9 else 12 * N
    served = lab.play(lab.trace(lab.poisson(rate, n), service_s=lab.exponential(n)))
    assert lab.near(served.sojourn_s, 1 / (1 - rate)) == ""
    for beyond, quantile in ((0.05, p95), (0.01, p99)):
        t = -log(beyond) / (1 - rate)
        assert t == pytest.approx(quantile, abs=1e-6)
        assert lab.near(served.sojourn_s > t, beyond) == "", f"P(W > {t:.6f})"


def test_queue_and_time_obey_little_on_the_sample_path(lab: SimpleNamespace) -> None:
    """The time integral of the number in the system is the sum of the times in it, exactly."""
    served = lab.play(lab.trace(lab.poisson(0.8, N), service_s=lab.exponential(N)))
    moments = np.concatenate([served.arrival_s, served.finish_s])
    change = np.concatenate([np.ones(N), -np.ones(N)])
    order = np.argsort(moments, kind="stable")
    inside = np.cumsum(change[order])[:-1]
    integral = float(np.sum(inside * np.diff(moments[order])))
    assert inside.min() >= 0
    assert integral == pytest.approx(float(served.sojourn_s.sum()), rel=1e-9)
    assert lab.near(served.sojourn_s * 0.8, 4.0) == ""  # L = rho/(1-rho)


def test_an_overhead_breaks_the_closed_form(lab: SimpleNamespace) -> None:
    """The anchor is not vacuous: 5 % more service is seen."""
    slow = replace(lab.SERVER, latency_s=((0.05,),))
    served = lab.play(lab.trace(lab.poisson(0.5, N), service_s=draw("det")), engine=slow)
    assert "SE" in lab.near(served.wait_s - 0.05, 0.5)


def test_one_server_is_the_lindley_recursion_exactly(lab: SimpleNamespace) -> None:
    """Times on a grid of 2^-20 s, so that floats add without rounding."""
    grid = 2.0**-20
    gaps = np.rint(np.random.default_rng(4).exponential(1 / 0.8, 20_000) / grid) * grid
    arrivals = np.cumsum(gaps)
    engine = replace(lab.SERVER, latency_s=((1.0,),), per_token_s=0.0)
    served = lab.play(lab.trace(arrivals), engine=engine)
    wait, waits = 0.0, []
    for gap in gaps[1:]:
        waits.append(wait)
        wait = max(0.0, wait + 1.0 - gap)
    waits.append(wait)
    assert np.array_equal(served.finish_s - arrivals - 1.0, waits)


@pytest.mark.parametrize(
    ("rate", "cv2", "wait"),
    [(0.7, 4, 6.761714), (0.7, 0.25, 1.236694), (0.5, 9, 7.332235), (0.7, 16, 24.521215)],
)
def test_gamma_arrivals_wait_as_gim1(
    lab: SimpleNamespace, rate: float, cv2: float, wait: float
) -> None:
    k = 1 / cv2
    root = brentq(lambda s: s - (k * rate / (k * rate + 1 - s)) ** k, 1e-9, 1 - 1e-6)
    assert root / (1 - root) == pytest.approx(wait, abs=1e-6)
    n = 3 * N
    arrivals = np.cumsum(np.random.default_rng(5).gamma(k, 1 / (k * rate), n))
    served = lab.play(lab.trace(arrivals, service_s=lab.exponential(n)))
    assert lab.near(served.wait_s, wait) == ""
    assert lab.near(served.wait_s > 1e-6, root) == ""


@pytest.mark.parametrize(
    ("rate", "servers", "waiting", "wait", "p99"),
    [
        (1.6, 2, 0.711111, 1.777778, None), (3, 4, 0.509434, 0.509434, None),
        (8, 10, 0.409180, 0.204590, 1.855785), (90, 100, 0.216940, 0.0216940, None),
    ],
)  # fmt: skip
def test_many_servers_wait_as_erlang_c(
    lab: SimpleNamespace, rate: float, servers: int, waiting: float, wait: float, p99: float | None
) -> None:
    share = erlang_c(rate, servers)
    assert share == pytest.approx(waiting, abs=1e-6)
    assert share / (servers - rate) == pytest.approx(wait, abs=1e-6)
    engine, n = replace(lab.SERVER, servers=servers), 4 * N
    served = lab.play(lab.trace(lab.poisson(rate, n), service_s=lab.exponential(n)), engine=engine)
    assert lab.near(served.wait_s, wait) == ""
    t = log(share / 0.05) / (servers - rate)  # 95th percentile of the wait
    assert lab.near(served.wait_s > t, 0.05) == ""
    if p99 is not None:
        assert log(share / 0.01) / (servers - rate) == pytest.approx(p99, abs=1e-6)
        assert lab.near(served.wait_s > p99, 0.01) == ""
    assert lab.near(served.wait_s > 1e-5, share * exp(-1e-5 * (servers - rate))) == ""


@pytest.mark.parametrize(
    ("rate", "places", "lost", "sojourn"),
    [(0.8, 5, 0.0888195, 2.563065), (1.0, 5, 1 / 6, 3.0), (1.2, 10, 0.1925865, 6.926138)],
)
def test_a_bounded_queue_rejects_as_mm1k(
    lab: SimpleNamespace, rate: float, places: int, lost: float, sojourn: float
) -> None:
    settings = Settings(admission=Admission(queue_limit=places - 1))
    asked = lab.trace(lab.poisson(rate, N), service_s=lab.exponential(N))
    served = lab.play(asked, settings=settings)
    rejected = served.outcome == "rejected"
    assert lab.near(rejected, lost) == ""
    assert lab.near(served.sojourn_s[~rejected], sojourn) == ""


@pytest.mark.parametrize("law", ["exp", "det", "h2"])
@pytest.mark.parametrize(
    ("load", "servers", "lost"),
    [(1, 1, 0.5), (5, 5, 0.2848678), (10, 10, 0.2145823), (8, 10, 0.1216611), (50, 60, 0.0216685)],
)
def test_without_a_queue_losses_are_erlang_b_whatever_the_law(
    lab: SimpleNamespace, law: str, load: float, servers: int, lost: float
) -> None:
    assert erlang_b(load, servers) == pytest.approx(lost, abs=1e-7)
    settings = Settings(admission=Admission(queue_limit=0))
    engine = replace(lab.SERVER, servers=servers)
    n = N // 2
    asked = lab.trace(lab.poisson(load, n), service_s=draw(law, n))
    served = lab.play(asked, engine=engine, settings=settings)
    assert lab.near(served.outcome == "rejected", lost) == ""
    taken = served.outcome == "completed"
    assert np.abs(served.wait_s[taken]).max() < 1e-6


def test_classes_take_turns_as_in_a_non_preemptive_priority_queue(lab: SimpleNamespace) -> None:
    rates = (0.3, 0.4)
    codes = (np.random.default_rng(6).random(N) > rates[0] / sum(rates)).astype(np.int32)
    asked = lab.trace(
        lab.poisson(sum(rates), N),
        service_s=lab.exponential(N),
        slo_class=Labels(codes, ("first", "second")),
    )
    served = lab.play(asked, slo_classes={"first": Slo(), "second": Slo()})
    residual = sum(rates) * 2.0 / 2
    first = residual / (1 - rates[0])
    assert lab.near(served.wait_s[codes == 0], first) == ""
    assert lab.near(served.wait_s[codes == 1], first / (1 - sum(rates))) == ""
    swapped = lab.play(asked, slo_classes={"second": Slo(), "first": Slo()})
    assert lab.near(swapped.wait_s[codes == 1], residual / (1 - rates[1])) == ""


@pytest.mark.parametrize("law", ["exp", "det", "lognormal"])
def test_with_servers_enough_the_number_served_is_poisson(lab: SimpleNamespace, law: str) -> None:
    engine = replace(lab.SERVER, servers=64)
    asked = lab.trace(lab.poisson(2.0, N), service_s=3 * draw(law))
    served = lab.play(asked, engine=engine)
    assert np.abs(served.wait_s).max() < 1e-6
    looks = np.linspace(0.02 * asked.span_s, asked.span_s, N)
    inside = np.searchsorted(served.arrival_s, looks, "right") - np.searchsorted(
        np.sort(served.finish_s), looks, "right"
    )
    assert lab.near(inside, 6.0) == ""
    assert lab.near((inside - 6.0) ** 2, 6.0) == ""
    assert exp(-6) == pytest.approx(0.00247875, abs=1e-8)
    for k in (0, 3, 6, 9):
        assert lab.near(inside == k, exp(-6) * 6.0**k / factorial(k)) == ""
