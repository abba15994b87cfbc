"""The policies in docs/write-a-policy.md do what the text says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from modelium.core import Load, Unload
from modelium.policies.toolkit.adapters import OnDemand
from modelium.testing import check_policy

TEXT = (Path(__file__).resolve().parents[2] / "docs/write-a-policy.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def made(block: str) -> Any:
    """Run a code block and return the class that it defines."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(block, names)
    return next(v for v in names.values() if getattr(v, "__module__", "") == "example")


def test_the_first_example_is_a_complete_file_of_fifteen_lines() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line]
    assert len(lines) <= 15
    assert issubclass(made(BLOCKS[0]), OnDemand)


@pytest.mark.parametrize("block", BLOCKS[:2])
def test_the_examples_conform(block: str) -> None:
    check_policy(made(block))


def test_the_example_from_nothing_conforms_where_it_says_that_it_works() -> None:
    policy = made(BLOCKS[2])
    with pytest.raises(AssertionError, match="wait for ever"):  # tensor parallel: not its business
        check_policy(policy)
    policy.answers_misses = False
    check_policy(policy)


def test_the_first_example_evicts_what_wastes_most(world: type) -> None:
    w = world({"small": 10, "large": 50, "new": 40}, [80]).obey(made(BLOCKS[0])())
    w.use("large", apart_s=10.0)
    w.use("small", apart_s=40.0)
    w.use("new")
    assert w.did(Unload) == ["large#1"]


def test_the_example_from_nothing_serves_single_gpu_models(world: type) -> None:
    w = world(dict.fromkeys("abc", 40), [80, 80]).obey(made(BLOCKS[2])())
    w.use(*"abcabc")
    assert w.cluster.finished == 6
    assert w.did(Load)[:3] == ["a", "b", "c"]


def test_the_text_names_only_what_there_is() -> None:
    import modelium.core as core
    import modelium.policies.toolkit.ageing as ageing

    for name in ("Load", "Unload", "Sleep", "Wake", "Move", "Remind", "Miss", "Tick", "Done"):
        assert f"`{name}" in TEXT
        assert hasattr(core, name)
    assert hasattr(ageing, "AtLastHit")
