"""Another policy or configuration while engines run: which models have to be replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, make_plan
from modelium.live.cluster import LiveCluster
from modelium.live.engines.gpus import PretendInventory
from modelium.live.reconfigure import ModelChanges, compare, exchange
from modelium.live.records.journal import Journal
from modelium.live.settings import LiveInput
from modelium.plugins.registry import make_policy
from modelium.serving import LaunchSpec
from modelium.serving.served_models import ServedModels
from tests.live import tiny


def given(folder: Path, policy: str, **sections: Any) -> LiveInput:
    """What a cluster that serves a small Llama by vLLM is given under a policy."""
    if not (folder / "m").exists():
        tiny.llama(folder / "m")
    config = Config.of(
        {
            "cluster": {"gpus": "h100-80g"},
            "models": {"m": {"path": str(folder / "m"), "runtime": "vllm"}},
            **sections,
        }
    )
    stock = ServedModels(LaunchSpec(config), make_plan(config))
    stock.sleeps = make_policy(policy).sleeps  # type: ignore[attr-defined]
    return stock.given(lambda runtime: None)


def changes(
    folder: Path, before: LiveInput, after: LiveInput, then: Callable[[LiveCluster], None]
) -> ModelChanges:
    """How a cluster finds them to differ; `then` looks at it when the change was made."""

    async def run() -> ModelChanges:
        journal = Journal(folder / "journal.db")
        cluster = LiveCluster(before, {}, PretendInventory(before.gpus), journal)
        found = compare(cluster, after)
        exchange(cluster, after, found)
        then(cluster)
        cluster.shut()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("policies", [("lru", "ilp"), ("ilp", "lru"), ("lru", "lru:sleep_level=1")])
def test_another_policy_leaves_engines_in_peace_also_if_it_puts_to_sleep(
    tmp_path: Path, policies: tuple[str, str]
) -> None:
    before, after = (given(tmp_path, policy) for policy in policies)
    [old], [new] = before.served, after.served
    assert old.model.can_sleep is not new.model.can_sleep
    found = changes(
        tmp_path,
        before,
        after,
        lambda cluster: assert_next_load(cluster, can_sleep=new.model.can_sleep),
    )
    assert (found.replaced, found.adjusted) == ([], ["m"])


def assert_next_load(cluster: LiveCluster, *, can_sleep: bool) -> None:
    assert cluster.state.models["m"].can_sleep is can_sleep
    assert cluster.served["m"].model.can_sleep is can_sleep


def test_what_the_engine_is_started_with_has_it_replaced(tmp_path: Path) -> None:
    before = given(tmp_path, "ilp")
    flagged = given(tmp_path, "ilp", vllm={"flags": ["--enforce-eager"]})
    assert changes(tmp_path, before, flagged, lambda cluster: None).replaced == ["m"]
    larger = replace(before.served[0], model=replace(before.served[0].model, kv_bytes=1 << 30))
    found = changes(tmp_path, before, replace(before, served=[larger]), lambda cluster: None)
    assert found.replaced == ["m"]
