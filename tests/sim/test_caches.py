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
from scipy.integrate import simpson
from scipy.optimize import brentq

from modelium.core import Policy
from modelium.policies.idle_ttl import IdleTtl
from modelium.policies.lfu import Lfu
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict
from modelium.results.record import floats, labels

FOUR = (0.4, 0.3, 0.2, 0.1)


def zipf(n: int, s: float) -> tuple[float, ...]:
    """Popularities of n models."""
    weights = [k**-s for k in range(1, n + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def lru_exactly(p: Sequence[float], c: int) -> float:
    """Sum of p_i over the odds that fewer than c others came since i did (Fagin, 1977).

    The integral over the age t of the last use of i: the others came by then independently, each
    with odds 1 - e^(-p t).
    """
    rates = np.array(p)
    # Simpson's rule in s = ln t: smooth, and nothing at both ends.
    log_t = np.linspace(-25.0, 12.0, 4001)
    t = np.exp(log_t)
    came = 1 - np.exp(-np.outer(t, rates))
    total = np.zeros_like(t)
    for i, rate in enumerate(rates):
        few = np.zeros((len(t), c))  # odds of 0, 1, ... c-1 others
        few[:, 0] = 1.0
        for j in range(len(p)):
            if j != i:
                moved = few * (1 - came[:, j : j + 1])
                moved[:, 1:] += few[:, :-1] * came[:, j : j + 1]
                few = moved
        total += rate * rate * np.exp(-rate * t) * few.sum(axis=1)
    return float(simpson(total * t, x=log_t))


def lru_by_orders(p: Sequence[float], c: int) -> float:
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
    """Gelenbe, 1973: sets of c weigh as their product; by elementary symmetric polynomials."""

    def sets(of: Sequence[float], size: int) -> float:
        sums = np.zeros(size + 1)
        sums[0] = 1.0
        for each in of:
            sums[1:] += sums[:-1] * each
        return float(sums[size])

    others = [[*p[:i], *p[i + 1 :]] for i in range(len(p))]
    hit = sum(p[i] ** 2 * sets(rest, c - 1) for i, rest in enumerate(others))
    return hit / sets(p, c)


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


def odds_of_hits(
    lab: SimpleNamespace, policy: Policy, p: Sequence[float], c: int, n: int
) -> np.ndarray:
    """For n independent requests, a second apart, the odds that each finds its model loaded.

    The popularity of what is loaded before each request has the mean of the hits themselves but a
    fraction of their noise; hits and misses must follow from what is loaded. Before them each model
    is asked for often enough, in order of popularity, to settle who is asked for most.
    """
    ranks = np.arange(len(p))
    lesson = np.repeat(ranks, 40 * (len(p) - ranks))
    models = np.concatenate([lesson, np.random.default_rng(13).choice(len(p), n, p=p)])
    n = len(models)
    served = lab.play(lab.trace(np.arange(1.0, n + 1), models), policy, gpu_bytes=(c,))
    assert set(served.outcome) == {"completed"}
    assert served.sojourn_s.max() < 1e-6
    there = np.zeros((n + 1, len(p)), np.int8)
    table = served.run.timeline
    kinds, names = labels(table, "kind")
    rows = kinds == names.index("weights")
    codes, names = labels(table, "model")
    number = np.array([int(name[1:]) if name else -1 for name in names])[codes][rows]
    begin, end = (floats(table, column)[rows] for column in ("start_s", "end_s"))
    first = np.searchsorted(served.arrival_s, begin, "right")
    np.add.at(there, (first, number), 1)
    np.subtract.at(there, (np.searchsorted(served.arrival_s, end, "right"), number), 1)
    there = np.cumsum(there, axis=0, dtype=np.int8)[:n]
    assert there.max() == 1
    assert there.sum(axis=1).max() <= c
    assert np.array_equal(there[np.arange(n), models] == 1, served.cold == "")
    odds: np.ndarray = there[len(lesson) :] @ np.array(p)
    return odds


RULES: dict[str, tuple[Callable[[], Policy], Callable[[Sequence[float], int], float]]] = {
    "lru": (Lru, lru_exactly),
    "random": (RandomEvict, random_exactly),
    "lfu": (Lfu, lfu_exactly),
}
CACHES = {
    "four, 2": (FOUR, 2),
    "zipf(10, 1), 3": (zipf(10, 1.0), 3),
    "zipf(20, .8), 5": (zipf(20, 0.8), 5),
    "zipf(20, 1), 10": (zipf(20, 1.0), 10),
    "zipf(50, .9), 8": (zipf(50, 0.9), 8),
    "zipf(100, 1), 10": (zipf(100, 1.0), 10),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cache", CACHES)
def test_hit_ratios_are_exact(lab: SimpleNamespace, rule: str, cache: str) -> None:
    make, formula = RULES[rule]
    p, c = CACHES[cache]
    odds = odds_of_hits(lab, make(), p, c, 3_600)
    assert lab.near(odds, formula(p, c), warm=0.1) == ""


@pytest.mark.parametrize(
    ("cache", "lru", "che_lru", "random", "lfu"),
    [
        ("four, 2", 0.5805556, 0.573009, 0.5714286, 0.7),
        ("zipf(10, 1), 3", 0.470664, 0.465724, 0.445105, 0.625931),
        ("zipf(20, .8), 5", 0.392975, 0.390667, 0.368868, 0.550986),
        ("zipf(20, 1), 10", 0.732557, 0.733887, None, 0.814113),
        ("zipf(50, .9), 8", 0.382915, 0.381949, None, 0.550395),
        ("zipf(100, 1), 10", None, 0.397629, None, 0.564634),
    ],
)
def test_the_formulas_give_the_published_figures(
    cache: str, lru: float | None, che_lru: float, random: float | None, lfu: float
) -> None:
    p, c = CACHES[cache]
    assert lru is None or lru_exactly(p, c) == pytest.approx(lru, abs=1e-6)
    assert random is None or random_exactly(p, c) == pytest.approx(random, abs=1e-6)
    assert che(p, c) == pytest.approx(che_lru, abs=1e-6)
    assert lru_exactly(p, c) == pytest.approx(che(p, c), abs=0.008)
    assert sum(p[:c]) == pytest.approx(lfu, abs=1e-6)  # may decline: above what must load
    assert lfu_exactly(p, c) < lfu
    if c <= 3:
        assert lru_exactly(p, c) == pytest.approx(lru_by_orders(p, c), abs=1e-9)
        by_sets = list(combinations(p, c))
        assert random_exactly(p, c) == pytest.approx(
            sum(prod(s) * sum(s) for s in by_sets) / sum(prod(s) for s in by_sets), abs=1e-12
        )


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
