"""Many clients at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from modelium.live.requests.dispatcher import DispatchSettings
from tests.gateway.site import HALTED, STEADY, Site, visit
from tests.live.house import frozen


def test_a_thousand_clients_at_a_cold_model(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        told = asyncio.Event()

        async def ask(number: int) -> int:
            body = {"model": "a", "prompt": "x", "max_tokens": 2, "stream": number % 2 == 0}
            async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
                raw = await answer.content.readline()
                if raw.startswith(b":"):
                    told.set()
                raw += await answer.read()
                assert answer.status == 200
                assert raw.endswith(b"data: [DONE]\n\n") == body["stream"]
                return raw.count(b"position")

        asking = asyncio.gather(*(ask(number) for number in range(1000)))
        await here.until(lambda: here.waiting() == 1000)
        await told.wait()
        here.house.go.set()
        assert any(await asking)
        # They came while it was loading: all waited, for one load.
        assert len(await here.journal()) == 1000
        assert [line.kind for _, line in here.house.cluster.decisions] == ["load"]

    visit(tmp_path, act, held=True, dispatch=DispatchSettings(queue_limit=1000))


def test_clients_that_give_up_waiting_leave_nothing_behind(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async def ask(number: int) -> None:
            body = {"model": "a", "prompt": "x", "stream": number % 2 == 0}
            async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
                await answer.read()

        asking = [asyncio.create_task(ask(number)) for number in range(100)]
        await here.until(lambda: here.waiting() == 100)
        for task in asking:
            task.cancel()
        await here.until(lambda: here.waiting() == 0)
        here.house.go.set()
        status, _ = await here.post(
            "/v1/completions", {"model": "a", "prompt": "x", "max_tokens": 1}
        )
        assert status == 200
        outcomes = [row[1] for row in await here.journal()]
        assert sorted(outcomes) == ["cancelled"] * 100 + ["completed"]

    visit(tmp_path, act, held=True)


def test_five_hundred_streams_at_once_are_all_whole(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async def ask(number: int) -> bytes:
            body = {"model": "a", "prompt": f"{number}", "max_tokens": 40, "stream": True}
            async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
                return await answer.read()

        assert (await here.post("/models/a/load"))[0] == 200
        with frozen(here.engine):  # nobody is served before everybody has come
            asking = asyncio.gather(*(ask(number) for number in range(500)))
            await here.until(lambda: here.running == 500)
        answers = await asking
        assert all(raw.count(b'"text"') == 40 for raw in answers)
        assert all(raw.endswith(b"data: [DONE]\n\n") for raw in answers)
        assert {row[1:] for row in await here.journal()} == {("completed", 1, 40)}

    step = {"decode_c": 0.05, "mixed_c": 0.05}
    engine = {"kind": "generate", "kv_tokens": 1_000_000, "step": step, "max_num_seqs": 500}
    settings = {**STEADY, "engine": engine}
    visit(tmp_path, act, settings=settings, dispatch=DispatchSettings(places=500), **HALTED)


def test_a_crowd_of_one_organization_does_not_hold_up_another(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        order: list[str] = []

        async def ask(organization: str, http: aiohttp.ClientSession) -> None:
            body = {"model": "a", "prompt": "x", "max_tokens": 5}
            headers = {"X-Organization": organization}
            async with http.post(
                f"{here.url}/v1/completions", json=body, headers=headers
            ) as answer:
                assert answer.status == 200
                order.append(organization)

        crowd = [asyncio.create_task(ask("crowd", here.http)) for _ in range(50)]
        await here.until(lambda: here.waiting() == 50)
        single = [asyncio.create_task(ask("single", here.http)) for _ in range(2)]
        await here.until(lambda: here.waiting() == 52)
        here.house.go.set()
        await asyncio.gather(*crowd, *single)
        assert [at for at, name in enumerate(order) if name == "single"][-1] <= 4

    visit(tmp_path, act, held=True, dispatch=DispatchSettings(places=1))
