"""Reasons of decisions as labels: the sentences that policies and operators really write."""

from __future__ import annotations

import pytest

from modelium.metrics.reasons import KINDS, OTHER, kind_of


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("3 waiting, oldest 2.0 s; frees 15.0 GiB", "waiting"),
        ("1 waiting, oldest 0 us; g0 failed it before, g1 instead", "waiting"),
        ("12 queued at 2 copies; frees 0 B", "queued"),
        ("0 of at least 1 copies; frees 0 B", "min_replicas"),
        ("plan +1.2: serves 0.5/s of llama without delay", "plan"),
        ("plan -0.3: frees 15.0 GiB of llama (0.01/s)", "plan"),
        ("the plan wants it here; loads in 12.0 s", "plan"),
        ("not in the plan, idle 5 min; makes room for llama", "plan"),
        ("idle 412 s, 0.01 requests/s; limits 300 s and 0.05/s", "idle"),
        ("idle 412 s, asleep first", "idle"),
        ("gdsf 0.031, lowest of 7; idle 412 s; makes room for llama", "makes_room"),
        ("last use 1234.5, lowest; drains 3 requests; makes room for llama", "makes_room"),
        ("moved to g1, g2", "moved"),
        ("operator asked for it (1 call)", "operator"),
        ("it is pinned (1 copy)", "operator"),
        ("high_qps", "high_qps"),
        ("", "none"),
        ("because I can", OTHER),
    ],
)
def test_a_reason_has_a_kind(reason: str, label: str) -> None:
    assert kind_of(reason) == label


def test_kinds_are_few() -> None:
    assert len({label for label, _ in KINDS}) == len(KINDS) < 15
