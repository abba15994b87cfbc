"""Each router, and a name that is none."""

from __future__ import annotations

from collections import Counter

import pytest

from modelium.control.state import Copy, FrozenMeters
from modelium.errors import ConfigError
from modelium.live.requests.interface import Request
from modelium.live.requests.routing import ROUTERS, router


def copies(*running: int) -> list[Copy]:
    return [
        Copy(f"a#{n}", "a", (f"gpu{n}",), "n0", FrozenMeters(running=k))
        for n, k in enumerate(running)
    ]


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_takes_what_there_is(name: str) -> None:
    [only] = copies(3)
    assert router(name)(Request("a", session="s"), [only]) is only


@pytest.mark.parametrize("name", ["least_outstanding", "shortest_queue"])
def test_the_fewest_requests_win(name: str) -> None:
    assert router(name)(Request("a"), copies(3, 1, 2)).id == "a#1"


def test_one_after_another() -> None:
    route, there = router("round_robin"), copies(9, 0, 0)
    assert [route(Request("a"), there).id for _ in range(4)] == ["a#0", "a#1", "a#2", "a#0"]
    assert router("round_robin")(Request("a"), there).id == "a#0"  # each has its own turn


def test_a_session_stays_and_only_those_of_a_lost_copy_move() -> None:
    route, there = router("session_affinity"), copies(5, 0, 0)
    asked = [Request("a", session=f"s{n}") for n in range(300)]
    before = [route(request, there).id for request in asked]
    assert before == [route(request, there[::-1]).id for request in asked]
    assert min(Counter(before).values()) > 50  # shared out, whatever runs there
    after = [route(request, there[:2]).id for request in asked]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "a#2")
    assert route(Request("a"), there).id == "a#1"  # without a session: the fewest requests


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no router called 'round_robbin'.*round_robin"):
        router("round_robbin")
