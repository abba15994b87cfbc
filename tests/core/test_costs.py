"""How long changes take, by hand: weights over the slowest link, fixed stages around them."""

from __future__ import annotations

from typing import Any

import pytest

from modelium.control.costs import INSTANT, ConfiguredFacts, StagedCosts
from modelium.core import Model, Phase
from modelium.units import GIB

BEFORE, AFTER, FIRST = 6.5, 14.0, 31.0
"""process + tokenizer; compile + profile + graphs; the same with the first compile of a node."""


def test_a_first_load_reads_from_disk_and_compiles(books: Any) -> None:
    b = books(a=30)
    assert b.state.costs.load_s("a", ("n0g0",)) == pytest.approx(BEFORE + 30 / 2 + FIRST)
    b.facts.seen.add(("a", "n0"))
    assert b.state.costs.load_s("a", ("n0g0",)) == pytest.approx(BEFORE + 30 / 2 + AFTER)
    assert b.state.costs.load_s("a", ("n1g0",)) == pytest.approx(BEFORE + 30 / 2 + FIRST)


def test_weights_in_host_memory_come_at_the_loaders_speed(books: Any) -> None:
    b = books(a=30)
    b.state.ram["n0"].cache("a", 30 * GIB)
    assert b.state.costs.load_s("a", ("n0g0",)) == pytest.approx(BEFORE + 30 / 4 + FIRST)


def test_weights_on_a_gpu_do_not_make_another_load_faster(books: Any) -> None:
    """What leaving costs is what coming back takes: from disk, unless host memory has a copy."""
    b = books(a=30)
    cold = b.state.costs.load_s("a", ("n0g1",))
    b.add("a", "n0g0")
    assert b.state.costs.load_s("a", ("n0g1",)) == cold
    b.state.ram["n0"].cache("a", 30 * GIB)
    assert b.state.costs.load_s("a", ("n0g1",)) < cold


def test_more_gpus_have_more_links_but_share_the_disk(books: Any) -> None:
    b = books(tp=Model("tp", 80 * GIB, gpus=2))
    from_disk = b.state.costs.load_s("tp", ("n0g0", "n0g1"))
    assert from_disk == pytest.approx(BEFORE + 80 / 2 + FIRST)
    b.state.ram["n0"].cache("tp", 80 * GIB)
    from_host = b.state.costs.load_s("tp", ("n0g0", "n0g1"))
    assert from_host == pytest.approx(BEFORE + 80 / 8 + FIRST)


def test_wake_and_sleep_move_weights_over_pcie_at_level_1(books: Any) -> None:
    b = books(a=30)
    copy = b.add("a", "n0g0")
    assert b.state.costs.sleep_s(copy.id, 1) == pytest.approx(0.2 + 30 / 20)
    assert b.state.costs.sleep_s(copy.id, 2) == 0.4
    assert b.state.costs.unload_s(copy.id) == 1.0
    b.state.change(copy, Phase.ASLEEP, host_bytes=30 * GIB, sleep_level=1)
    assert b.state.costs.wake_s(copy.id) == pytest.approx(0.1 + 30 / 20)


def test_a_wake_from_level_2_reads_the_weights_again(books: Any) -> None:
    b = books(a=30)
    copy = b.add("a", "n0g0", Phase.ASLEEP, sleep_level=2)
    assert b.state.costs.wake_s(copy.id) == pytest.approx(0.3 + 30 / 2)
    b.add("a", "n0g1")  # ready beside it, which does not help
    assert b.state.costs.wake_s(copy.id) == pytest.approx(0.3 + 30 / 2)
    b.state.ram["n0"].cache("a", 30 * GIB)
    assert b.state.costs.wake_s(copy.id) == pytest.approx(0.3 + 30 / 4)


def test_figures_can_be_set_by_model(books: Any) -> None:
    b = books(a=30, b=30)
    b.facts.by_model["b"] = INSTANT
    assert b.state.costs.load_s("b", ("n0g0",)) == pytest.approx(30 / 2)
    assert b.state.costs.load_s("a", ("n0g0",)) > 30


def test_work_is_asked_of_the_gpus_kind(books: Any) -> None:
    b = books(a=30)
    asked: list[tuple[str, str, float, float]] = []

    def work(model: Model, kind: str, prompt: float, output: float) -> float:
        asked.append((model.name, kind, prompt, output))
        return 7.0

    costs = StagedCosts(b.state, ConfiguredFacts(), work)
    assert costs.work_s("a", "n0g0", 100.0, 5.0) == 7.0
    assert asked == [("a", "x", 100.0, 5.0)]
