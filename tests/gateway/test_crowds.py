"""Many clients at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from modelium.live.reception import House
from tests.gateway.site import SLOW_LOAD, STEADY, Site, visit


def test_a_thousand_clients_at_a_cold_model(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async def ask(number: int) -> int:
            body = {"model": "a", "prompt": "x", "max_tokens": 2, "stream": number % 2 == 0}
            async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
                raw = await answer.read()
                assert answer.status == 200
                assert raw.endswith(b"data: [DONE]\n\n") == body["stream"]
                return raw.count(b"position")

        most, asking = 0, asyncio.gather(*(ask(number) for number in range(1000)))
        while not asking.done():
            most = max(most, here.waiting())
            await asyncio.sleep(0.01)
        comments = await asking
        assert any(comments)
        # They came while it was loading: all waited, for one load.
        assert most == 1000
        assert len(here.journal()) == 1000
        assert [line.kind for _, line in here.house.cluster.decisions] == ["load"]

    slow = {**SLOW_LOAD, "stages": {"process": 8.0}}
    visit(tmp_path, act, settings=slow, house=House(queue_limit=1000))


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
        status, _ = await here.post(
            "/v1/completions", {"model": "a", "prompt": "x", "max_tokens": 1}
        )
        assert status == 200
        assert [row[1] for row in here.journal()] == ["completed"]

    visit(tmp_path, act, settings={**SLOW_LOAD, "stages": {"process": 8.0}})


def test_five_hundred_streams_at_once_are_all_whole(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        begun, all_begun = 0, asyncio.Event()

        async def ask(number: int) -> bytes:
            nonlocal begun
            body = {"model": "a", "prompt": f"{number}", "max_tokens": 40, "stream": True}
            async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
                raw = await answer.content.readuntil(b"\n\n")
                while raw.startswith(b":"):
                    raw = await answer.content.readuntil(b"\n\n")
                begun += 1
                if begun == 500:
                    assert here.running == 500
                    all_begun.set()
                return raw + await answer.read()

        answers = await asyncio.gather(*(ask(number) for number in range(500)))
        assert all_begun.is_set()
        assert all(raw.count(b'"text"') == 40 for raw in answers)
        assert all(raw.endswith(b"data: [DONE]\n\n") for raw in answers)
        assert {row[1:] for row in here.journal()} == {("completed", 1, 40)}

    # Half a second a token: nobody is done before everybody has begun.
    step = {"decode_c": 0.3, "mixed_c": 0.3}
    engine = {"kind": "generate", "kv_tokens": 1_000_000, "step": step, "max_num_seqs": 500}
    visit(
        tmp_path, act, settings={**STEADY, "engine": engine}, house=House(places=500)
    )  # fmt: skip


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
        await asyncio.gather(*crowd, *single)
        assert [at for at, name in enumerate(order) if name == "single"][-1] <= 4

    visit(tmp_path, act, settings={**STEADY, "stages": {"p": 1.0}}, house=House(places=1))
