"""The bound of docs/concepts.md on small clusters where every model is always busy."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.control.costs import ConfiguredFacts, Links, Stages
from modelium.core import Gpu, Model, Node
from modelium.errors import PolicyError
from modelium.plugins.registry import make_policy
from modelium.policies.toolkit.draining import Draining
from modelium.testing import FakeCluster
from modelium.units import GIB

SERVICE_S, APART_S, SPAN_S = 3.0, 2.0, 2500.0
POLICIES = ("lru", "lru:sleep_level=1", "gdsf:swap_share=0.4", "landlord:sleep_level=2")


@settings(max_examples=40, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    gpus=st.integers(1, 3),
    wide=st.lists(st.booleans(), min_size=2, max_size=4),
    process_s=st.floats(1.0, 20.0),
    unload_s=st.floats(0.0, 5.0),
)
def test_no_request_waits_longer_than_the_bound(
    policy: str, gpus: int, wide: list[bool], process_s: float, unload_s: float
) -> None:
    stages = Stages(process_s, 0.0, 0.0, 0.0, 0.0, 0.0, unload_s=unload_s)
    models = [
        Model(f"m{k}", 60 * GIB, asleep_bytes=GIB, gpus=min(gpus, 2) if two else 1)
        for k, two in enumerate(wide)
    ]
    cluster = FakeCluster(
        models,
        [Gpu(f"g{k}", "n0", 80 * GIB) for k in range(gpus)],
        [Node("n0", 1000 * GIB)],
        facts=ConfiguredFacts(default_stages=stages, default_links=Links()),
        service_s=SERVICE_S,
        slots=1000,
    )
    made = make_policy(policy)
    share = 0.4 if "swap_share" in policy else 0.2
    longest_s = 0.0

    def hear(event: object) -> None:
        nonlocal longest_s
        for copy in cluster.state.instances.values():
            costs = cluster.state.costs
            longest_s = max(longest_s, costs.load_s(copy.model, copy.gpus))
        for action in tuple(made.decide(cluster.state, event)):  # type: ignore[arg-type]
            cluster.start(action)

    cluster.listen(hear)
    cluster.begin(getattr(made, "every_s", None))
    for model in models:
        for k in range(int(SPAN_S / APART_S)):
            cluster.at(APART_S * k, partial(cluster.submit, model.name))
    cluster.run_until(SPAN_S + 3000.0)
    assert cluster.finished == cluster.submitted
    part_s = longest_s + unload_s  # what it costs at most to leave and to come back
    own_s = longest_s + gpus * part_s
    bound_s = own_s + len(models) * (SERVICE_S + part_s / share + longest_s)
    assert cluster.longest_wait_s <= bound_s


def test_the_request_that_waits_is_the_same_though_the_clock_goes_on() -> None:
    """Live, its arrival is reckoned back from a clock that is read anew each time."""
    cluster = FakeCluster([Model("m", GIB)], [], [], passes_s=5e-4)
    draining = Draining("auto", 0.2)
    cluster.submit("m")
    cluster.run(10.0)
    draining.look_again(cluster.state, "m", None, 25.0)
    assert {draining.looks_again_s(cluster.state, "m", None) for _ in range(20)} == {25.0}
    cluster.demand["m"].queue.clear()
    cluster.submit("m")
    assert draining.looks_again_s(cluster.state, "m", None) is None


@pytest.mark.parametrize("share", ["0", "-1", "1.5"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(PolicyError, match=r"swap_share is .*: give a share above 0, at most 1"):
        make_policy(f"lru:swap_share={share}")


def test_the_wait_is_a_duration_or_a_word() -> None:
    for text in ("lru:drain_after_s=auto", "lru:drain_after_s=2min", "lru:drain_after_s=inf"):
        make_policy(text)
    with pytest.raises(PolicyError, match="drain_after_s is 'soon', expected"):
        make_policy("lru:drain_after_s=soon")
