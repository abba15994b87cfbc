"""A model whose clients overlap keeps nobody out: it is drained, and those who wait are told so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelium.live.admin import AdminService
from modelium.live.requests.interface import Request
from modelium.testing.scenarios import model
from modelium.units import GIB
from tests.live.harness import QUIET_S, STEADY
from tests.live.house import House, house

CHAT, TITLE = (model(name, 10, kv_bytes=66 * GIB) for name in ("chat", "title"))
"""Little to move, and no room for both on one GPU, even with half the KV pool (`ilp`)."""
SLOW = {**STEADY, "engine": {**STEADY["engine"], "step": {"decode_c": 0.2, "mixed_c": 0.2}}}  # type: ignore[dict-item]
"""Requests of a second, so that those of four clients always overlap."""


@pytest.mark.parametrize("policy", ["lru", "ilp"])
def test_four_overlapping_clients_do_not_starve_another_model(tmp_path: Path, policy: str) -> None:
    async def run() -> None:
        async with house(tmp_path, [CHAT, TITLE], policy=policy, settings=SLOW) as here:
            desk = AdminService(here.cluster, here.driver, policy)
            # What a start takes is measured, so that a swap is known to be cheap here.
            assert await here.ask("title")
            assert await here.ask("chat")
            over = asyncio.Event()
            clients = [asyncio.create_task(_again_and_again(here, over)) for _ in range(4)]
            await here.until(lambda: _running(here) >= 3)
            told: list[float | None] = []
            seat = asyncio.create_task(
                here.cluster.dispatcher.seat(Request("title"), lambda w: told.append(w.left_s))
            )
            await here.until(lambda: told)
            seen = next(one for one in desk.models() if one["name"] == "title")
            (await _soon(seat)).finish("completed")
            over.set()
            await asyncio.gather(*clients)
            assert "waits for chat#" in seen["waits_for"]
            assert "drained in about" in seen["waits_for"]
            assert told[0] is not None
            assert told[0] > 0
            kinds = [line["kind"] for line in await desk.decisions("chat")]
            assert kinds.count("unload") + kinds.count("sleep") >= 1

    asyncio.run(run())


async def _soon(seat: asyncio.Task) -> object:  # type: ignore[type-arg]
    async with asyncio.timeout(QUIET_S):
        return await seat


def _running(here: House) -> int:
    return sum(copy.running for copy in here.cluster.state.instances_of("chat"))


async def _again_and_again(here: House, over: asyncio.Event) -> None:
    while not over.is_set():
        await here.ask("chat")
