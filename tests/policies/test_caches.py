"""Hit ratios of eviction rules under independent requests, against their exact formulas."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import prod, sqrt
from statistics import mean, stdev

import pytest

from modelium.core import Policy
from modelium.policies.belady_cost import BeladyCost
from modelium.policies.landlord import Landlord
from modelium.policies.lfu import Lfu
from modelium.policies.lru import Lru
from modelium.policies.random_evict import RandomEvict

FOUR = (0.4, 0.3, 0.2, 0.1)
BATCHES = 20


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


def fifo_exactly(p: Sequence[float], c: int) -> float:
    """Gelenbe, 1973: the same for first in, first out and for random eviction."""
    sets = list(combinations(p, c))
    return sum(prod(s) * sum(s) for s in sets) / sum(prod(s) for s in sets)


def lfu_exactly(p: Sequence[float], c: int) -> float:
    """Perfect LFU that must load what is missed.

    The c-1 most popular stay for ever; the last place has whichever of the others came last. (The
    sum of the c largest p, which books give, is for a cache that may decline to store.)
    """
    rest = p[c - 1 :]
    return sum(p[: c - 1]) + sum(each * each for each in rest) / sum(rest)


def hits(world: type, policy: Policy, p: Sequence[float], c: int, n: int) -> list[float]:
    """Hit ratios of batches of independent requests, with room for c copies of equal size."""
    models = [f"m{k:02}" for k in range(len(p))]
    w = world(dict.fromkeys(models, 10), [10] * c, service_s=0.25).obey(policy)
    rng = random.Random(7)
    w.use(*rng.choices(models, p, k=n // 10), apart_s=1.0)  # fills the cache, forgets the start
    ratios = []
    for _ in range(BATCHES):
        begin = len(w.log)
        w.use(*rng.choices(models, p, k=n // BATCHES), apart_s=1.0)
        misses = sum(type(action).__name__ == "Load" for _, action in w.log[begin:])
        ratios.append(1 - misses / (n // BATCHES))
    return ratios


@pytest.mark.parametrize(
    ("make", "p", "c", "exact"),
    [
        (Lru, FOUR, 2, lru_exactly(FOUR, 2)),
        (Lru, zipf(10, 1.0), 3, lru_exactly(zipf(10, 1.0), 3)),
        (RandomEvict, FOUR, 2, fifo_exactly(FOUR, 2)),
        (RandomEvict, zipf(20, 0.8), 5, fifo_exactly(zipf(20, 0.8), 5)),
        (lambda: Landlord(renewal=0.0), zipf(10, 1.0), 3, fifo_exactly(zipf(10, 1.0), 3)),
        (Lfu, FOUR, 2, lfu_exactly(FOUR, 2)),
        (Lfu, zipf(10, 1.0), 3, lfu_exactly(zipf(10, 1.0), 3)),
    ],
)
def test_hit_ratios_are_exact_within_four_standard_errors(
    world: type, make: Callable[[], Policy], p: Sequence[float], c: int, exact: float
) -> None:
    ratios = hits(world, make(), p, c, 6_000)
    error = stdev(ratios) / sqrt(BATCHES)
    assert abs(mean(ratios) - exact) < 4 * error, (mean(ratios), exact, error)


def test_the_formulas_give_the_published_figures() -> None:
    assert lru_exactly(FOUR, 2) == pytest.approx(0.5805556, abs=1e-7)
    assert fifo_exactly(FOUR, 2) == pytest.approx(0.5714286, abs=1e-7)
    assert lru_exactly(zipf(10, 1.0), 3) == pytest.approx(0.470664, abs=1e-6)
    assert fifo_exactly(zipf(10, 1.0), 3) == pytest.approx(0.445105, abs=1e-6)
    assert fifo_exactly(zipf(20, 0.8), 5) == pytest.approx(0.368868, abs=1e-6)


def test_belady_misses_as_rarely_as_a_search_of_all_evictions(world: type) -> None:
    rng = random.Random(3)
    for _ in range(30):
        asked = [rng.choice("abcde") for _ in range(12)]
        times = {m: [float(t) for t, a in enumerate(asked) if a == m] for m in "abcde"}
        policy = BeladyCost(times)
        w = world(dict.fromkeys("abcde", 10), [10, 10], service_s=0.25).obey(policy)
        w.use(*asked, apart_s=1.0)
        loads = sum(type(action).__name__ == "Load" for _, action in w.log)
        assert loads == _fewest_loads(tuple(asked), 2)


def _fewest_loads(asked: tuple[str, ...], room: int) -> int:
    best = {frozenset[str](): 0}
    for model in asked:
        after: dict[frozenset[str], int] = {}
        for cache, loads in best.items():
            if model in cache:
                choices = [(cache, loads)]
            elif len(cache) < room:
                choices = [(cache | {model}, loads + 1)]
            else:
                choices = [(cache - {out} | {model}, loads + 1) for out in cache]
            for choice, cost in choices:
                after[choice] = min(cost, after.get(choice, cost))
        best = after
    return min(best.values())
