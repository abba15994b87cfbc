"""OpenAI's calls, made by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest

from modelium.gateway.engines import openai_payload
from modelium.gateway.request_parsing import Ask
from modelium.live.requests.dispatcher import DispatchSettings
from modelium.live.requests.interface import Request
from modelium.managers.engine import Engine
from modelium.testing.scenarios import model
from tests.gateway.paced import paced
from tests.gateway.site import SLOW_LOAD, STEADY, Site, events, visit

HI = [{"role": "user", "content": "hi"}]


def test_every_call_of_a_real_client(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        assert [m.id async for m in client.models.list()] == ["a"]
        assert (await client.models.retrieve("a")).id == "a"
        chat = await client.chat.completions.create(model="a", messages=HI, max_tokens=5)
        assert len(str(chat.choices[0].message.content).split()) == 5
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 5
        text = await client.completions.create(model="a", prompt="one two", max_tokens=3, seed=1)
        assert text.choices[0].finish_reason == "length"
        vectors = await client.embeddings.create(model="a", input=["x", "y"])
        assert len(vectors.data) == 2
        said = await client.chat.completions.create(
            model="a", messages=HI, max_tokens=5, stream=True
        )
        pieces = [piece async for piece in said]
        words = "".join(p.choices[0].delta.content or "" for p in pieces)
        assert words == chat.choices[0].message.content
        assert all(piece.usage is None for piece in pieces)
        said = await client.chat.completions.create(
            model="a", messages=HI, max_tokens=5, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        last = [piece async for piece in said][-1]
        assert last.usage is not None
        assert (last.usage.completion_tokens, last.choices) == (5, [])
        assert [row[1:] for row in await here.journal()] == [
            ("completed", 1, 5), ("completed", 2, 3), ("completed", 2, 0),
            ("completed", 1, 5), ("completed", 1, 5),
        ]  # fmt: skip

    visit(tmp_path, act)


def test_a_stream_at_a_cold_model_tells_how_far_it_is(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        body = {"model": "a", "prompt": "x", "max_tokens": 150, "stream": True}
        async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
            raw = await answer.read()
        assert answer.status == 200
        told = events(raw)
        comments = [one for one in told if isinstance(one, str) and one.startswith(": a: ")]
        assert comments
        assert all(one.endswith("position 1") for one in comments)
        assert "to go" in comments[0]
        assert comments == told[: len(comments)]  # and none while it answers, for 1.5 s
        assert told[-1] == "data: [DONE]"
        client = here.openai()
        said = await client.completions.create(model="a", prompt="x", max_tokens=2, stream=True)
        assert len([piece async for piece in said]) == 2

    visit(tmp_path, act, settings={**STEADY, "stages": SLOW_LOAD["stages"]})


def test_openais_client_reads_past_the_comments(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        said = await client.chat.completions.create(
            model="a", messages=HI, max_tokens=4, stream=True
        )
        assert len([piece async for piece in said]) == 5

    visit(tmp_path, act, settings=SLOW_LOAD)


def test_refusals_have_openais_shape_and_the_right_status(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        with pytest.raises(openai.NotFoundError, match="no model called 'aa'") as error:
            await client.completions.create(model="aa", prompt="x")
        assert error.value.code == "model_not_found"
        assert error.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="aa", prompt="x", stream=True)
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.completions.create(model="a", prompt="x", max_tokens=10_000_000)
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.completions.create(
                model="a", prompt="x", max_tokens=10_000_000, stream=True
            )
        status, told = await here.post("/v1/completions", {"model": "a"})
        assert (status, told["error"]["param"]) == (400, "prompt")
        assert told["error"]["type"] == "invalid_request_error"
        status, told = await here.post("/v1/completions", {"model": "a", "prompt": "x" * 5000})
        assert status == 413
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        status, told = await here.ask("POST", "/v1/completions", data=b"junk", headers=headers)
        assert status == 400
        assert "cannot be read" in told["error"]["message"]
        # What the engine found too long was refused, not failed; the others never reached it.
        assert {row[1] for row in await here.journal()} == {"refused"}

    visit(tmp_path, act, gateway={"max_body_bytes": 4000})


def test_a_model_that_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        with pytest.raises(openai.InternalServerError, match="It can never run here") as error:
            await here.openai().completions.create(model="huge", prompt="x")
        assert error.value.status_code == 503

    visit(tmp_path, act, [model("huge", 500)])


def test_a_full_queue_is_429_and_says_when_to_come_again(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        first = asyncio.create_task(client.completions.create(model="a", prompt="x", max_tokens=1))
        await here.until(lambda: here.waiting() == 1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="wait for a already") as error:
                await client.completions.create(model="a", prompt="x", stream=stream)
            assert error.value.code == "queue_full"
            assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
        here.house.go.set()
        await first

    visit(tmp_path, act, held=True, dispatch=DispatchSettings(queue_limit=1))


def test_who_waits_too_long_is_told_so_with_a_status_or_in_its_stream(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai(default_headers={"X-Max-Wait": "0.8"})
        with pytest.raises(openai.InternalServerError, match="no engine of a was ready") as error:
            await client.completions.create(model="a", prompt="x")
        assert error.value.status_code == 503
        said = await client.completions.create(model="a", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match=r"no engine of a was ready within \d+ s"):
            [piece async for piece in said]
        assert here.waiting() == 0

    visit(tmp_path, act, held=True)


def test_requests_are_known_by_id_organization_and_priority(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        headers = {"X-Request-Id": "mine", "X-Organization": "acme", "X-Priority": "3"}
        body = {"model": "a", "prompt": "x", "max_tokens": 1, "user": "not an organization"}
        asking = asyncio.create_task(
            here.http.post(f"{here.url}/v1/completions", json=body, headers=headers)
        )
        room = here.house.cluster.dispatcher.queue
        await here.until(lambda: here.waiting() == 1)
        entry = room.first("a")
        assert entry is not None
        assert (entry.request.organization, entry.request.priority) == ("acme", 3)
        here.house.go.set()
        async with await asking as answer:
            assert answer.headers["X-Request-Id"] == "mine"
        async with here.http.get(f"{here.url}/health") as other:
            assert len(other.headers["X-Request-Id"]) == 32
        assert await here.journal() == [("acme", "completed", 1, 1)]

    visit(tmp_path, act, held=True)


def test_names_with_slashes_and_blanks_work(tmp_path: Path) -> None:
    name = "org/my model#1"

    async def act(here: Site) -> None:
        client = here.openai()
        answer = await client.completions.create(model=name, prompt="x", max_tokens=1)
        assert answer.model == name
        assert (await here.post("/predict/org/my%20model%231", {"prompt": "x"}))[0] == 200
        assert (await here.get("/v1/models/org/my%20model%231"))[1]["id"] == name
        assert (await here.get("/v2/models/org%2Fmy%20model%231/ready"))[0] == 200
        status, told = await here.post("/models/org/my%20model%231/unload")
        assert (status, told["status"]) == (200, "unloaded")

    visit(tmp_path, act, [model(name, 10)])


def payload(raw: bytes, name: str = "a") -> bytes:
    body = json.loads(raw)
    ask = Ask("/v1/completions", raw, body, Request("a"), bool(body.get("stream")),
              bool((body.get("stream_options") or {}).get("include_usage")))  # fmt: skip
    return openai_payload(ask, Engine("a#1", "a", "vllm", "http://x", "openai", name))


def test_bodies_reach_the_engine_as_they_were_sent() -> None:
    odd = b'{ "model":"a", "prompt": "\\u00e9", "seed": 123456789012345678901234567890 }'
    assert payload(odd) == odd
    assert json.loads(payload(odd, "other"))["model"] == "other"
    asked = b' {"model":"a","stream":true,"stream_options":{"include_usage":true}}'
    assert payload(asked) == asked


def test_usage_is_asked_for_where_the_client_does_not() -> None:
    plain = b' {"model":"a", "stream":true, "seed": 123456789012345678901234567890}'
    assert payload(plain).endswith(plain.strip()[1:])
    want = {"include_usage": True}
    assert json.loads(payload(plain)) == json.loads(plain) | {"stream_options": want}
    for options in (None, {}, {"include_usage": False}, {"other": 1}):
        raw = json.dumps({"model": "a", "stream": True, "stream_options": options}).encode()
        assert json.loads(payload(raw))["stream_options"] == {**(options or {}), **want}


def test_a_steady_stream_arrives_piece_by_piece(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        assert (await here.post("/models/a/load"))[0] == 200
        async with paced(here) as front:
            front.let()
            said = await client.completions.create(
                model="a", prompt="x", max_tokens=30, stream=True
            )
            # Each goes when the one before has come: what is kept back would wait for ever.
            pieces = 0
            async for _ in said:
                pieces += 1
                front.let()
            assert pieces == 30

    visit(tmp_path, act)


def test_only_streams_have_a_time_between_tokens(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client, now_s = here.openai(), here.house.cluster.now_s
        asked = {"model": "a", "prompt": "x", "max_tokens": 9}
        await client.completions.create(**asked)
        async with paced(here) as front:
            front.let()
            said = await client.completions.create(**asked, stream=True)
            await anext(said)
            first_seen_s = now_s()
            front.let(8)
            assert len([piece async for piece in said]) == 8
        await here.until(lambda: here.running == 0)
        journal = here.house.cluster.journal
        journal.write_rows()
        rows = journal._db.execute("SELECT first_token_s, finish_s FROM requests ORDER BY finish_s")
        (first, finish), (begun, done) = rows.fetchall()
        assert first == finish
        assert begun <= first_seen_s < done

    visit(tmp_path, act)
