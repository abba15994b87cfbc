"""Rates of transfers that share links: max-min fair, whoever else is there."""

from __future__ import annotations

import simpy
from hypothesis import given
from hypothesis import strategies as st

from modelium.control.costs import Links
from modelium.sim.links import NodeLinks, _capacity, _fill, _Transfer

SPEC = Links(6.0, 25.0, 2, 5.0)
LINKS = ("disk", "pcie0", "pcie1", "up0")
SHARES = st.dictionaries(st.sampled_from(LINKS), st.just(1.0), min_size=1)


def transfer(cap: float, use: dict[str, float]) -> _Transfer:
    """`use` is taken in equal parts over its PCIe switches, as a copy on several GPUs does."""
    switches = [link for link in use if link != "disk"]
    shares = {link: 1.0 if link == "disk" else 1.0 / len(switches) for link in use}
    return _Transfer(1.0, cap, shares, simpy.Environment().event())


CAPS = st.floats(0.1, 100.0)
TRANSFERS = st.lists(st.builds(transfer, CAPS, SHARES), min_size=1, max_size=5)


@given(CAPS, SHARES)
def test_a_transfer_alone_is_as_fast_as_beside_one_that_shares_nothing(
    cap: float, use: dict[str, float]
) -> None:
    alone, beside, stranger = transfer(cap, use), transfer(cap, use), transfer(1e9, {})
    _fill([alone], SPEC)
    _fill([beside, stranger], SPEC)
    assert alone.rate == beside.rate


@given(TRANSFERS)
def test_no_link_carries_too_much_and_each_transfer_is_held_up_by_something(
    transfers: list[_Transfer],
) -> None:
    _fill(transfers, SPEC)
    load = {link: sum(t.rate * t.use.get(link, 0.0) for t in transfers) for link in LINKS}
    full = {link for link, at in load.items() if at >= _capacity(link, SPEC) * (1 - 1e-9)}
    for link, at in load.items():
        assert at <= _capacity(link, SPEC) * (1 + 1e-9)
    for one in transfers:
        fastest_on = {link: max(t.rate for t in transfers if link in t.use) for link in one.use}
        held_up = any(link in full and one.rate >= fastest_on[link] for link in one.use)
        assert one.rate >= one.cap or held_up, "else it could go faster and harm nobody slower"


def test_transfers_that_meet_at_one_instant_on_a_link_without_limit_take_no_time() -> None:
    env = simpy.Environment()
    links = NodeLinks(env, Links(float("inf"), float("inf"), 2, float("inf")), {"g0": 0, "g1": 1})
    both = [env.process(links.move(1 << 30, (gpu,), disk=True)) for gpu in ("g0", "g1")]
    env.run(simpy.AllOf(env, both))
    assert env.now <= 2
