"""The GreedyDual family: two mechanisms, the same victims; and its keys, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import Load, Policy, Unload
from modelium.policies.gdsf import Gdsf
from modelium.policies.landlord import Landlord
from modelium.policies.lfuda import Lfuda

MODELS = "abcdef"
# Sizes and costs whose quotients are exact in binary, so that ties are ties in both mechanisms.
SIZES = st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=6, max_size=6)
COSTS = st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=6, max_size=6)
ASKED = st.lists(
    st.tuples(st.sampled_from(MODELS), st.sampled_from([0.0, 1.0, 7.0])), min_size=25, max_size=60
)
INF = float("inf")


def loading_for(**seconds: float) -> ConfiguredFacts:
    """Loads that take a fixed time by model."""
    stages = {
        name: Stages(s, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 0.0)
        for name, s in seconds.items()
    }
    return ConfiguredFacts(stages, default_links=Links(INF, INF, 2, INF))


def victims(
    world: type,
    policy: Policy,
    sizes: Sequence[int],
    costs: Sequence[int],
    gpus: Sequence[int],
    asked: Sequence[tuple[str, float]],
) -> list[tuple[float, str]]:
    facts = loading_for(**dict(zip(MODELS, costs, strict=True)))
    w = world(dict(zip(MODELS, sizes, strict=True)), gpus, facts=facts, service_s=3.0).obey(policy)
    for model, gap_s in asked:
        w.use(model, apart_s=gap_s)
    w.cluster.run(1000.0)
    assert w.cluster.finished == len(asked)
    return [(at, a.instance) for at, a in w.log if isinstance(a, Unload)]


@settings(max_examples=200)
@given(
    sizes=SIZES, costs=COSTS, gpus=st.sampled_from([(16,), (31,), (16, 16), (20, 33)]), asked=ASKED
)
def test_landlord_with_full_renewal_evicts_exactly_what_greedy_dual_size_does(
    world: type,
    sizes: list[int],
    costs: list[int],
    gpus: tuple[int, ...],
    asked: list[tuple[str, float]],
) -> None:
    case = (sizes, costs, gpus, asked)
    by_clock = victims(world, Gdsf(variant="gds"), *case)
    by_rent = victims(world, Landlord(), *case)
    assert by_clock == by_rent


def test_the_equivalence_needs_the_reset(world: type) -> None:
    asked = [(m, 7.0) for m in "abcabdabeabfacabdcebafdbcaeb"]
    case = ([4, 8, 4, 8, 16, 2], [1, 8, 2, 3, 4, 1], (20,), asked)
    assert victims(world, Landlord(renewal=0.0), *case) != victims(world, Landlord(), *case)


def test_gdsf_keeps_what_is_asked_often_costly_or_small(world: type) -> None:
    def first_victim(policy: Policy, sizes: Sequence[int], costs: Sequence[int], asked: str) -> str:
        got = victims(world, policy, sizes, costs, (12,), [(m, 50.0) for m in asked])
        return got[0][1].split("#")[0]

    # a and b are resident; f needs room and either would do.
    assert first_victim(Gdsf(), (6, 6, 1, 1, 1, 6), (4, 4, 1, 1, 1, 1), "aabf") == "b"
    assert first_victim(Gdsf(), (6, 6, 1, 1, 1, 6), (4, 8, 1, 1, 1, 1), "abf") == "a"
    assert first_victim(Gdsf(), (8, 4, 1, 1, 1, 4), (4, 4, 1, 1, 1, 1), "abf") == "a"
    # Each variant leaves a factor out.
    case = ((8, 4, 1, 1, 1, 4), (12, 1, 1, 1, 1, 1), "abf")
    assert first_victim(Gdsf(), *case) == "b"
    assert first_victim(Gdsf(variant="size"), *case) == "a"
    assert first_victim(Gdsf(variant="freq"), (8, 4, 1, 1, 1, 4), (4, 5, 1, 1, 1, 1), "abf") == "a"


@pytest.mark.parametrize("make", [Lfuda, Gdsf])
def test_ageing_lets_go_of_an_old_favourite(world: type, make: type) -> None:
    """Ten requests for a, then never again; b and c evict each other, but not for ever."""
    asked = [("a", 9.0)] * 10 + [(m, 9.0) for m in "bc" * 12]
    got = victims(world, make(), (5, 5, 5, 5, 5, 5), (1, 1, 1, 1, 1, 1), (10,), asked)
    gone = [name.split("#")[0] for _, name in got]
    assert "a" in gone
    assert gone.index("a") >= 8  # its ten requests protect it for a while


def test_perfect_lfu_never_lets_go(world: type) -> None:
    from modelium.policies.lfu import Lfu

    asked = [("a", 9.0)] * 30 + [(m, 9.0) for m in "bc" * 12]
    got = victims(world, Lfu(), (5, 5, 5, 5, 5, 5), (1, 1, 1, 1, 1, 1), (10,), asked)
    assert "a" not in [name.split("#")[0] for _, name in got]


def test_lfu_in_cache_forgets_what_it_evicted(world: type) -> None:
    from modelium.policies.lfu import Lfu

    w = world(dict.fromkeys("abcd", 10), [20]).obey(Lfu(in_cache=True))
    w.use(*"aaabbcccdd")  # c evicts b (2 < 3), d evicts: a has 3, c has 3, a is older
    assert [m.split("#")[0] for m in w.did(Unload)] == ["b", "a"]
    w.use("a")  # a counts from 1 again; the lowest of c (3) and d (2) leaves
    assert [m.split("#")[0] for m in w.did(Unload)] == ["b", "a", "d"]
    assert w.did(Load) == ["a", "b", "c", "d", "a"]
