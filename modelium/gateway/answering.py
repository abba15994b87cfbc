"""A request that is answered in one piece: take a seat, ask the engine, give the seat back.

A request whose engine breaks before the answer has begun is sent again, to another engine or to
the same model's next one; so is one that an engine answers with a server error, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from modelium.gateway.asking import Ask
from modelium.gateway.desk import Desk
from modelium.gateway.engines import (
    JSON,
    BrokenError,
    called,
    kserve_answer,
    kserve_payload,
    openai_payload,
    usage_of,
)  # fmt: skip
from modelium.gateway.errors import ApiError, refused
from modelium.live.seats import RefusedError, Request, Seat
from modelium.managers.engine import Engine


@dataclass(slots=True)
class Given:
    """What an engine has answered."""

    status: int
    body: bytes
    content_type: str = "application/json"
    tokens: tuple[int, int] = (0, 0)
    """Prompt, output."""
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        """The same, for the client."""
        return web.Response(
            status=self.status,
            body=self.body,
            headers={"Content-Type": self.content_type, **self.headers},
        )


Talk = Callable[[Engine], Awaitable[Given]]


async def whole(desk: Desk, ask: Ask) -> web.Response:
    """Answer an OpenAI request in one piece. Raises ApiError."""
    given = await seated(desk, ask.request, lambda engine: talk(desk, ask, engine))
    return given.response()


async def seated(desk: Desk, request: Request, talk_to: Talk) -> Given:
    """Let `talk_to` ask an engine, and another one if that breaks. Raises ApiError."""
    while True:
        seat = await take(desk, request)
        try:
            given = await talk_to(seat.engine)
        except BrokenError as error:
            again(desk, seat, str(error))
            continue
        except asyncio.CancelledError:
            seat.finish("cancelled")
            raise
        except BaseException:
            seat.finish("failed")
            raise
        if given.status >= 500 and not request.retries:
            again(desk, seat, f"it answered {given.status}")
            continue
        seat.first_token()
        over(desk, seat, given.status < 400, given.tokens)
        return given


async def take(desk: Desk, request: Request) -> Seat:
    """A seat, or the cluster's refusal as an ApiError."""
    try:
        return await desk.seats.seat(request)
    except RefusedError as error:
        raise refused(error) from None


def again(desk: Desk, seat: Seat, why: str) -> None:
    """Give a broken engine's seat back; raises ApiError (503) if it was the last try."""
    seat.lost(why)
    seat.request.retries += 1
    if seat.request.retries > desk.settings.retries:
        error = RefusedError(503, f"engines broke {seat.request.retries} times; {why}", 1.0)
        desk.seats.give_up(seat.request, error)
        raise refused(error)


def over(desk: Desk, seat: Seat, well: bool, tokens: tuple[int, int]) -> None:
    """Give a seat back, and charge what was used."""
    prompt, output = tokens
    seat.finish("completed" if well else "failed", prompt_tokens=prompt, output_tokens=output)
    desk.limits.used(seat.request.organization, prompt + output)


async def talk(desk: Desk, ask: Ask, engine: Engine) -> Given:
    """Ask an engine for a completion, a chat or embeddings, in one piece."""
    if engine.api == "openai" and not engine.extra.get("plain"):
        payload = openai_payload(ask, engine)
        async with called(desk, engine, ask.path, payload, JSON) as answer:
            body = await answer.read()
        tokens = usage_of(_parsed(body)) if answer.status == 200 else (0, 0)
        return Given(answer.status, body, answer.content_type, tokens)
    if engine.api == "openai":
        raise ApiError(422, f"{ask.request.model} takes POST /predict/{ask.request.model} only")
    return await text_model(desk, ask, engine)


async def text_model(desk: Desk, ask: Ask, engine: Engine) -> Given:
    """Ask a text model behind KServe's protocol."""
    path = f"/v2/models/{engine.name}/infer"
    async with called(desk, engine, path, kserve_payload(ask), JSON) as answer:
        raw = await answer.read()
    if answer.status != 200:
        return Given(answer.status, raw, answer.content_type)
    told = kserve_answer(ask, _parsed(raw))
    return Given(200, orjson.dumps(told), tokens=usage_of(told))


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
