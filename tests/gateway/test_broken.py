"""Engines that break: requests that have not begun to answer go elsewhere, others end clearly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from aiohttp import web

from modelium.gateway.desk import Settings
from tests.gateway.scripted import BREAK, WAIT, Script, Stage, perform
from tests.gateway.site import ENDLESS, HALTED, TOKENS, Site, events, visit

DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n'
JSON = "application/json"
FINE = b'{"choices":[{"text":"hi"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


def word(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"text":"%b"}]}\n\n' % text.encode()


WHOLE = [word("one"), word("two"), USAGE, DONE]


def test_a_stream_that_breaks_before_the_first_content_is_asked_for_again() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert (status, raw) == (200, word("one") + word("two") + DONE)
        assert here.left == [("lost", False), ("completed", 4, 2)]
        assert len(here.heard) == 2

    perform(act, Script([ROLE, BREAK]), Script(WHOLE))


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_does_not_know_the_model_cannot_do(stream: bool) -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=stream)
        error = json.loads(raw)["error"]
        assert (status, error["type"]) == (422, "invalid_request_error")
        assert error["message"] == "the model's engine cannot do this: Not Found"
        assert here.left == [("failed", 0, 0)]

    perform(act, Script([b'{"detail":"Not Found"}'], 404, JSON))


def test_a_stream_that_breaks_later_ends_with_one_clear_error() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert status == 200
        first, error, end = events(raw)
        assert first["choices"][0]["text"] == "one"
        assert "broke in the middle" in error["error"]["message"]
        assert error["error"]["code"] == "engine_lost"
        assert end == "data: [DONE]"
        assert here.left == [("lost", True)]

    # Half an event is not passed on.
    perform(act, Script([word("one"), word("two")[:9], BREAK]))


@pytest.mark.parametrize("parts", [[word("one")], [word("one"), USAGE]])
def test_a_stream_that_ends_without_its_end_has_not_been_completed(parts: list[bytes]) -> None:
    async def act(here: Stage) -> None:
        _, raw = await here.ask(stream=True)
        assert "ended before its end" in events(raw)[-2]["error"]["message"]
        assert here.left == [("lost", True)]

    perform(act, Script([*parts]))


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask()
        assert (status, raw) == (200, FINE)
        assert here.left == [("lost", False), ("completed", 1, 1)]

    perform(act, Script([FINE[:20], BREAK], kind=JSON), Script([FINE], kind=JSON))


@pytest.mark.parametrize("stream", [False, True])
def test_engines_that_always_break_end_in_503(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.gateway.answering.PAUSE_S", 0.001)

    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=stream)
        assert status == 503
        assert "engines broke 4 times" in json.loads(raw)["error"]["message"]
        assert [left[0] for left in here.left] == ["lost"] * 4 + ["given up"]

    perform(act, *[Script([BREAK])] * 4)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_own_error_is_tried_once_more_and_then_told_as_502(stream: bool) -> None:
    bad = b'{"error":{"message":"EngineCore died","type":"x","param":null,"code":500}}'

    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=stream)
        assert status == 502
        assert json.loads(raw)["error"]["message"] == "EngineCore died"
        assert here.left == [("lost", False), ("failed", 0, 0)]

    perform(act, *[Script([bad], 500, JSON)] * 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [b'{"detail":"no"}', b'{"error":"no"}', b"no", b"\xffno", b"[]"])
def test_whatever_shape_an_engines_refusal_has_its_status_stays(stream: bool, body: bytes) -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=stream)
        assert status == 422
        assert not stream or json.loads(raw)["error"]["message"]
        assert here.left == [("failed", 0, 0)]

    perform(act, Script([body], 422, JSON))


def test_an_engine_that_does_not_stream_is_told_as_502() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert status == 502
        assert "application/json, not with a stream" in json.loads(raw)["error"]["message"]

    perform(act, Script([FINE], kind=JSON))


def test_a_client_that_leaves_closes_the_engines_connection() -> None:
    async def act(here: Stage) -> None:
        body = {"model": "a", "prompt": "x", "stream": True}
        async with here.http.post(here.url + "/v1/completions", json=body) as answer:
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await here.gone.wait()
        assert here.left == [("cancelled", 0, 1)]

    perform(act, Script([word("one"), WAIT]))


def test_a_client_that_leaves_before_the_first_piece_does_so_too() -> None:
    async def act(here: Stage) -> None:
        for stream in (True, False):
            here.gone.clear()
            asking = asyncio.create_task(here.ask(stream=stream))
            while len(here.heard) <= (not stream):
                await asyncio.sleep(0.01)
            asking.cancel()
            await here.gone.wait()
            while len(here.left) <= (not stream):
                await asyncio.sleep(0.01)
        assert [left[0] for left in here.left] == ["cancelled", "cancelled"]

    perform(act, Script([ROLE, WAIT]), Script([b"{", WAIT], kind=JSON))


def test_a_client_that_never_reads_loses_its_seat_and_memory_stays_bounded() -> None:
    flood = word("x" * 1000) * 10

    async def act(here: Stage) -> None:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", int(here.url.rpartition(":")[2]), limit=1
        )
        body = json.dumps({"model": "a", "prompt": "x", "stream": True}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await here.gone.wait()
        while not here.left:
            await asyncio.sleep(0.01)
        assert here.left[0][0] == "cancelled"
        writer.close()

    perform(act, Script([flood] * 100_000), settings=Settings(write_timeout_s=0.5))


def test_a_client_that_sends_too_slowly_is_told_so() -> None:
    async def act(here: Stage) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(here.url.rpartition(":")[2])
        )
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()

    perform(act, settings=Settings(read_timeout_s=0.5))


def test_what_is_no_http_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def act(here: Stage) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(here.url.rpartition(":")[2])
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    perform(act)
    [record] = [record for record in caplog.records if "Error handling" in record.message]
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "Got more than" in record.message


def test_a_real_engine_killed_while_it_streams(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        said = await client.completions.create(
            model="a", prompt="x", max_tokens=TOKENS, stream=True
        )
        await anext(said)
        assert here.engine.process is not None
        os.killpg(here.engine.process.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="broke in the middle"):
            [piece async for piece in said]
        again = await client.completions.create(model="a", prompt="x", max_tokens=2)
        assert again.usage is not None

    visit(tmp_path, act, settings=ENDLESS)


def test_an_engine_killed_before_it_answers_is_not_noticed(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        await client.completions.create(model="a", prompt="x", max_tokens=1)
        process = here.engine.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        asking = [
            asyncio.create_task(client.completions.create(model="a", prompt="x", max_tokens=100))
            for _ in range(20)
        ]
        await here.until(lambda: here.running == 20)
        os.killpg(process.pid, signal.SIGKILL)
        answers = await asyncio.gather(*asking)
        assert all(a.usage is not None and a.usage.completion_tokens == 100 for a in answers)
        assert [row[1] for row in await here.journal()] == ["completed"] * 21

    visit(tmp_path, act, **HALTED)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [b"", ROLE])
def test_what_waits_for_an_engine_that_was_ended_is_asked_for_again(
    begun: bytes, stream: bool, tmp_path: Path
) -> None:
    async def act(here: Site) -> None:
        async with deaf(begun) as url:
            await before_a_deaf_front(here, url)
            asking = asyncio.create_task(
                here.http.post(here.url + CHAT, json={**HELLO, "stream": stream})
            )
            await here.until(lambda: here.running == 1)
            end(here)
            async with await asking as answer:
                raw = await answer.read()
        assert answer.status == 200
        assert b"error" not in raw
        assert [row[1] for row in await here.journal()] == ["completed"] * 2

    visit(tmp_path, act)


def test_a_stream_that_has_begun_ends_clearly_when_its_engine_is_ended(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with deaf(word("one")) as url:
            await before_a_deaf_front(here, url)
            async with here.http.post(here.url + CHAT, json={**HELLO, "stream": True}) as answer:
                await answer.content.readuntil(b"\n\n")
                end(here)
                assert (
                    b"broke in the middle of the answer: a#1: it was stuck" in await answer.read()
                )

    visit(tmp_path, act)


CHAT = "/v1/chat/completions"
HELLO = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@asynccontextmanager
async def deaf(begun: bytes) -> AsyncIterator[str]:
    """A front like Ray's, which lets requests wait, for ever, when what is behind it is gone."""

    async def play(http: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if begun:
            await answer.prepare(http)
            await answer.write(begun)
        await asyncio.Event().wait()
        return answer

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", play)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def before_a_deaf_front(here: Site, url: str) -> None:
    """Load the model; requests from now on go to `url`."""
    status, _ = await here.post(CHAT, HELLO)
    assert status == 200
    engines = here.house.cluster.engines
    engines.update({name: replace(engine, url=url) for name, engine in engines.items()})


def end(here: Site) -> None:
    """The cluster ends the engine, as one that it finds in trouble."""
    [copy] = here.house.cluster.state.instances_of("a")
    here.house.cluster.kill(here.house.cluster.state.copy(copy.id), "it was stuck")
