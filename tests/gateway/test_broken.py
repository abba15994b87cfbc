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

from modelium.gateway.context import Settings
from modelium.live.records.export import read_run
from modelium.live.records.telemetry import Telemetry
from modelium.managers.engine import Api
from modelium.metrics import ModeliumMetrics
from modelium.results.table import DETAILS, cells
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
        assert here.left == [("refused", 0, 0)]

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


DIED = b'{"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}'
LONG = b'{"error":{"message":"too long","type":"BadRequestError","param":"prompt","code":400}}'


def told(error: bytes) -> bytes:
    return b"data: " + error + b"\n\n"


@pytest.mark.parametrize("error", [DIED, b'{"error":"died"}', b'{"object":"error","code":500}'])
@pytest.mark.parametrize("head", [[], [ROLE]])
def test_a_failure_told_before_the_first_content_is_asked_for_again(
    error: bytes, head: list[bytes]
) -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert (status, raw) == (200, word("one") + word("two") + DONE)
        assert here.left == [("lost", False), ("completed", 4, 2)]

    perform(act, Script([*head, told(error) + DONE]), Script(WHOLE))


def test_a_failure_told_twice_before_the_first_content_is_502() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert (status, json.loads(raw)["error"]["message"]) == (502, "EngineCore died")
        assert here.left == [("lost", False), ("failed", 0, 0)]

    perform(act, *[Script([told(DIED), DONE])] * 2)


@pytest.mark.parametrize(
    "parts",
    [
        [word("one"), told(DIED) + DONE],
        [word("one") + told(DIED) + DONE],
        [word("one"), b"event: error\n" + told(b'{"error":"EngineCore died"}'), DONE],
    ],
)
def test_a_failure_told_within_an_answer_is_one(parts: list[bytes]) -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=True)
        assert status == 200
        first, error, end = events(raw)
        assert first["choices"][0]["text"] == "one"
        assert error["error"]["code"] == "engine_lost"
        assert "EngineCore died" in error["error"]["message"]
        assert end == "data: [DONE]"
        assert here.left == [("lost", True)]

    perform(act, Script(parts))


@pytest.mark.parametrize(
    ("parts", "api"),
    [([WAIT], "openai"), ([ROLE, WAIT], "openai"), ([word("one"), WAIT], "openai"),
     ([b"{", WAIT], "kserve")],
)  # fmt: skip
def test_an_engine_that_is_silent_for_long_does_not_end_the_connection(
    parts: list[bytes | str], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.gateway.openai.streaming.SILENCE_S", 0.02)

    async def act(here: Stage) -> None:
        body = {"model": "a", "prompt": "x", "stream": True}
        async with here.http.post(here.url + "/v1/completions", json=body) as answer:
            said = [await answer.content.readuntil(b"\n\n") for _ in range(5)]
            assert said[-3:] == [b": a: its engine is at work\n\n"] * 3
            assert (word("one") in said) == (word("one") in parts)
        await here.gone.wait()
        while not here.left:
            await asyncio.sleep(0.01)
        assert here.left[0][0] == "cancelled"
        assert len(asyncio.all_tasks()) < 20  # nobody goes on talking to it

    perform(act, Script(parts), api=api)


def test_a_steady_engine_is_not_spoken_for() -> None:
    async def act(here: Stage) -> None:
        _, raw = await here.ask(stream=True)
        assert b"at work" not in raw

    perform(act, Script([word("one")] * 100 + [DONE]))


def test_an_answer_that_its_engine_gives_up_is_not_completed() -> None:
    given_up = b'{"choices":[{"index":0,"text":"","finish_reason":"abort"}]}'

    async def act(here: Stage) -> None:
        _, raw = await here.ask(stream=True)
        assert "gave the request up" in events(raw)[-2]["error"]["message"]
        assert await here.ask() == (200, FINE)
        assert here.left == [("lost", True), ("lost", False), ("completed", 1, 1)]

    perform(
        act,
        Script([word("one"), told(given_up), DONE]),
        Script([given_up], kind=JSON),
        Script([FINE], kind=JSON),
    )


def test_what_a_request_is_to_blame_for_is_no_engines_failure() -> None:
    async def act(here: Stage) -> None:
        for stream in (True, False):
            status, raw = await here.ask(stream=stream)
            assert (status, json.loads(raw)["error"]["message"]) == (400, "too long")
        status, raw = await here.ask(stream=True)
        assert events(raw)[1]["error"]["message"] == "too long"
        assert events(raw)[-1] == "data: [DONE]"
        assert here.left == [("refused", 0, 0), ("refused", 0, 0), ("refused", 0, 1)]

    perform(
        act,
        Script([told(LONG) + DONE]),
        Script([LONG], kind=JSON),
        Script([word("one"), told(LONG) + DONE]),
    )


@pytest.mark.parametrize("bad", [DIED, b'{"error":"died"}', b"", b"null", FINE[:30], b"<html>"])
def test_an_answer_that_is_none_is_asked_for_again(bad: bytes) -> None:
    async def act(here: Stage) -> None:
        assert await here.ask() == (200, FINE)
        assert here.left == [("lost", False), ("completed", 1, 1)]

    perform(act, Script([bad], kind=JSON), Script([FINE], kind=JSON))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"error":"Request for unknown model: \'a~1\' is not found"}'),
        (503, b'{"error":"Request for unknown model: \'a~1\' has no available versions"}'),
        (500, b'{"error":"Stub process \'a_0\' is not healthy."}'),
        (200, b'{"error":"Stub process \'a_0\' is not healthy."}'),
        (200, b'{"outputs":[{"name":"text_out'),
    ],
)
def test_a_model_that_triton_lost_is_asked_for_again(status: int, body: bytes) -> None:
    fine = b'{"outputs":[{"name":"text_output","datatype":"BYTES","shape":[1],"data":["hi"]}]}'
    broken = [Script([body], status, JSON), Script([fine], kind=JSON)]

    async def act(here: Stage) -> None:
        for stream in (False, True):
            got, raw = await here.ask(stream=stream)
            assert (got, b"hi" in raw, b"error" in raw) == (200, True, False)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
        got, raw = await here.ask("/v2/models/a/infer", inputs=[tensor])
        assert (got, b"hi" in raw) == (200, True)
        assert [left[0] for left in here.left] == ["lost", "completed"] * 3

    perform(act, *broken * 3, api="kserve", name="a~1")


@pytest.mark.parametrize("stream", [False, True])
def test_an_application_that_ray_lost_is_asked_for_again(stream: bool) -> None:
    gone = b"Path '/a' not found. Ping http://.../-/routes for available routes."

    async def act(here: Stage) -> None:
        status, raw = await here.ask(stream=stream)
        assert (status, b"error" in raw) == (200, False)
        assert [left[0] for left in here.left] == ["lost", "completed"]

    whole = Script(WHOLE) if stream else Script([FINE], kind=JSON)
    perform(act, Script([gone], 404, "text/plain"), whole)


def test_a_client_that_leaves_between_two_engines_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelium.gateway.proxy.PAUSE_S", 1000.0)

    async def act(here: Stage) -> None:
        for stream in (True, False):
            here.left.clear()
            asking = asyncio.create_task(here.ask(stream=stream))
            while not here.left:
                await asyncio.sleep(0.01)
            asking.cancel()
            while len(here.left) < 2:
                await asyncio.sleep(0.01)
            assert here.left == [("lost", False), ("cancelled", 1)]

    perform(act, *[Script([BREAK])] * 2)


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
    monkeypatch.setattr("modelium.gateway.proxy.PAUSE_S", 0.001)

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
        assert here.left == [("refused", 0, 0)]

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


@pytest.mark.parametrize(
    ("head", "status", "told"),
    [
        (b"X: " + b"y" * 100_000, 400, "Got more than"),
        (b"X: \x7f", 400, "Invalid header value char: b'X: "),
        (b"Content-Encoding: gzip\r\nContent-Length: 4", 404, "Can not decode content-encoding"),
        (b"Expect: \xe4\r\nContent-Length: 4", 417, ""),
    ],
)
def test_what_is_no_http_is_at_most_a_line_in_the_log(
    head: bytes, status: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(here: Stage) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(here.url.rpartition(":")[2])
        )
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(head + b"\r\n\r\nnone")
        assert f" {status} ".encode() in await reader.readline()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    perform(act)
    records = [record for record in caplog.records if record.name.startswith("modelium")]
    assert [(r.levelname, r.exc_info) for r in records] == [("WARNING", None)] * bool(told)
    for record in records:
        assert told in record.getMessage()
        assert "\n" not in record.getMessage()


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


def test_a_failure_within_an_answer_is_one_in_every_book(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        metrics = ModeliumMetrics()
        Telemetry(here.house.cluster, metrics)
        async with deaf(word("one") + USAGE + told(DIED) + DONE) as url:
            await before_a_deaf_front(here, url)
            body = {**HELLO, "stream": True, "max_tokens": 1000}
            async with here.http.post(here.url + CHAT, json=body) as answer:
                assert events(await answer.read())[-2]["error"]["code"] == "engine_lost"
        assert (await here.journal())[-1] == ("", "failed", 4, 2)
        journal = here.house.cluster.journal
        rows = journal._db.execute("SELECT slo_met, why, instance FROM requests").fetchall()
        assert (rows[0][0], rows[1][0]) == (1, 0)
        assert "EngineCore died" in rows[1][1]
        counted = metrics.exposition()[0].decode()
        assert 'requests_total{model="a",runtime="emulated",status="lost"} 1.0' in counted
        [used] = (await here.get("/usage"))[1]["organizations"]
        assert used["output_tokens"] == 4  # not the thousand that it asked for
        run = read_run(journal.path)
        assert run.summary["requests"]["failed"] == 1
        assert run.summary["slo_attainment"] == 0.5

    visit(tmp_path, act)


def test_clients_that_give_up_are_in_every_book(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        metrics = ModeliumMetrics()
        Telemetry(here.house.cluster, metrics)
        asking = [
            asyncio.create_task(here.http.post(here.url + CHAT, json={**HELLO, "stream": stream}))
            for stream in (True, False)
        ]
        await here.until(lambda: here.waiting() == 2)
        for task in asking:
            task.cancel()
        await here.until(lambda: here.waiting() == 0)
        here.house.go.set()
        assert (await here.post(CHAT, HELLO))[0] == 200
        rows = [row[1:] for row in await here.journal()]
        assert sorted(row[::2] for row in rows) == [("cancelled", 0)] * 2 + [("completed", 2)]
        counted = metrics.exposition()[0].decode()
        assert 'requests_total{model="a",runtime="emulated",status="cancelled"} 2.0' in counted
        assert 'modelium_queue_wait_seconds_count{model="a"} 3.0' in counted
        [used] = (await here.get("/usage"))[1]["organizations"]
        assert (used["requests"], used["prompt_tokens"]) == (3, 1)
        run = read_run(here.house.cluster.journal.path)
        assert run.summary["requests"] == {
            "arrived": 3, "completed": 1, "rejected": 0, "failed": 0, "unfinished": 0,
            "cancelled": 2,
        }  # fmt: skip
        shown = {c.head: c.texts for c in cells([run.summary], DETAILS)}
        assert shown["cancelled"] == ("2",)

    visit(tmp_path, act, held=True)


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
