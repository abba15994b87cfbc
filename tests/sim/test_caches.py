"""GPU memory as a cache: hit ratios of real policies on the simulated cluster.

Independent requests, far apart, for models of equal size of which C fit; loads and services take
next to no time. `tests/policies/test_caches.py` proves the same without the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import exp, prod
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import brentq

from modelium.core import Policy
from modelium.policies.idle_ttl import IdleTtl
from modelium.policies.lfu import Lfu
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.record import floats, labels

FOUR = (0.4, 0.3, 0.2, 0.1)


def zipf(n: int, s: float) -> tuple[float, ...]:
    """Popularities of n models."""
    weights = [k**-s for k in range(1, n + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def lru_exactly(p: Sequence[float], c: int) -> float:
    """King, 1971: over all orders of the c most recently used."""
    total = 0.0
    for recent in permutations(p, c):
        seen, chance = 0.0, 1.0
        for each in recent:
            chance *= each / (1 - seen)
            seen += each
        total += chance * seen
    return total


def random_exactly(p: Sequence[float], c: int) -> float:
    """Gelenbe, 1973."""
    sets = list(combinations(p, c))
    return sum(prod(s) * sum(s) for s in sets) / sum(prod(s) for s in sets)


def lfu_exactly(p: Sequence[float], c: int) -> float:
    """Perfect LFU that must load what is missed: the last of c places has what came last.

    The sum of the c largest is for a cache that may decline to store.
    """
    rest = p[c - 1 :]
    return sum(p[: c - 1]) + sum(each * each for each in rest) / sum(rest)


def che(p: Sequence[float], c: int) -> float:
    """Che's approximation for LRU (Fricker, Robert, Roberts, arXiv 1202.3974)."""
    t = brentq(lambda t: sum(1 - exp(-each * t) for each in p) - c, 0, 1e6)
    return sum(each * (1 - exp(-each * t)) for each in p)


def hits(lab: SimpleNamespace, policy: Policy, p: Sequence[float], c: int, n: int) -> np.ndarray:
    """Which of n independent requests, a second apart, found their model loaded."""
    models = np.random.default_rng(13).choice(len(p), n, p=p)
    served = lab.play(lab.trace(np.arange(1.0, n + 1), models), policy, gpu_bytes=(c,))
    assert set(served.outcome) == {"completed"}
    assert served.sojourn_s.max() < 1e-6
    found: np.ndarray = served.cold == ""
    return found


@pytest.mark.parametrize(
    ("make", "p", "c", "exact"),
    [
        (Lru, FOUR, 2, lru_exactly(FOUR, 2)),
        (Lru, zipf(20, 1.0), 10, 0.732557),
        (Lru, zipf(50, 0.9), 8, 0.382915),
        (Lru, zipf(100, 1.0), 10, che(zipf(100, 1.0), 10)),
        (RandomEvict, FOUR, 2, random_exactly(FOUR, 2)),
        (RandomEvict, zipf(10, 1.0), 3, random_exactly(zipf(10, 1.0), 3)),
        (Lfu, FOUR, 2, lfu_exactly(FOUR, 2)),
    ],
)
def test_hit_ratios_are_exact(
    lab: SimpleNamespace, make: Callable[[], Policy], p: Sequence[float], c: int, exact: float
) -> None:
    assert lab.near(hits(lab, make(), p, c, 5_000), exact, warm=0.1) == ""


def test_the_formulas_give_the_published_figures() -> None:
    assert lru_exactly(FOUR, 2) == pytest.approx(0.5805556, abs=1e-7)
    assert random_exactly(FOUR, 2) == pytest.approx(0.5714286, abs=1e-7)
    assert lru_exactly(zipf(10, 1.0), 3) == pytest.approx(0.470664, abs=1e-6)
    assert random_exactly(zipf(10, 1.0), 3) == pytest.approx(0.445105, abs=1e-6)
    assert random_exactly(zipf(20, 0.8), 5) == pytest.approx(0.368868, abs=1e-6)
    assert che(zipf(100, 1.0), 10) == pytest.approx(0.397629, abs=1e-6)


# Time to live


@pytest.mark.parametrize(
    ("rate", "idle_s", "cold"),
    [(1 / 600, 600, 0.367879), (1 / 3600, 600, 0.846482), (1 / 60, 300, 0.006738)],
)
def test_a_model_kept_alive_is_cold_with_the_odds_of_a_long_gap(
    lab: SimpleNamespace, rate: float, idle_s: float, cold: float
) -> None:
    assert exp(-rate * idle_s) == pytest.approx(cold, abs=1e-6)
    n = 40_000 if cold < 0.1 else 2_000
    policy = IdleTtl(idle_s=idle_s, qps_min=float("inf"))
    served = lab.play(lab.trace(lab.poisson(rate, n)), policy)
    assert lab.near(served.cold != "", cold) == ""
    assert resident_s(served.run) / served.arrival_s[-1] == pytest.approx(
        1 - cold, abs=4 * (cold / n) ** 0.5 + 0.002
    )


def resident_s(run: object) -> float:
    """Seconds for which weights were there, summed over copies."""
    table = run.timeline  # type: ignore[attr-defined]
    codes, kinds = labels(table, "kind")
    rows = np.array(kinds)[codes] == "weights"
    return float((floats(table, "end_s") - floats(table, "start_s"))[rows].sum())


def test_time_to_live_hits_and_holds_what_its_formulas_say(lab: SimpleNamespace) -> None:
    """Hit ratio: sum of p (1 - e^(-rate T)); models resident: sum of (1 - e^(-rate T))."""
    p, rate, idle_s, n = zipf(10, 1.0), 1.0, 5.0, 6_000
    models = np.random.default_rng(14).choice(10, n, p=p)
    policy = IdleTtl(idle_s=idle_s, qps_min=float("inf"))
    served = lab.play(lab.trace(lab.poisson(rate, n), models), policy, gpu_bytes=(10,))
    there = [1 - exp(-rate * each * idle_s) for each in p]
    assert lab.near(served.cold == "", float(np.dot(p, there))) == ""
    assert resident_s(served.run) / served.arrival_s[-1] == pytest.approx(sum(there), rel=0.02)


def test_active_models_are_as_many_as_an_infinite_server_holds(lab: SimpleNamespace) -> None:
    """100 models, each asked 0.037 times a second, alive for 16.79 s: 46.27 at a time."""
    n = 6_000
    models = np.random.default_rng(15).integers(0, 100, n)
    policy = IdleTtl(idle_s=16.79, qps_min=float("inf"))
    served = lab.play(lab.trace(lab.poisson(3.7, n), models), policy, gpu_bytes=(100,))
    exact = 100 * (1 - exp(-0.037 * 16.79))
    assert exact == pytest.approx(46.271683, abs=1e-6)
    assert lab.near(served.cold != "", 1 - exact / 100) == ""
    assert resident_s(served.run) / served.arrival_s[-1] == pytest.approx(exact, rel=0.02)
