"""A request that is answered in one piece: take a seat, ask the engine, give the seat back.

A request whose engine breaks before the answer has begun is sent again, to another engine or to
the same model's next one; so is one that an engine answers with a server error, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import orjson
from aiohttp import web

from modelium.gateway.context import GatewayContext
from modelium.gateway.engines import (
    BUSY,
    NOT_FOUND,
    BrokenError,
    Given,
    called,
    check_loaded,
    engine_error,
    failure_in,
    infer_path,
    object_of,
    openai_payload,
    usage_of,
)  # fmt: skip
from modelium.gateway.errors import ApiError, refused
from modelium.gateway.openai.kserve_adapter import kserve_payload, openai_answer, output_of
from modelium.gateway.request_parsing import Ask
from modelium.live.requests.interface import Outcome, RefusedError, Request, Seat
from modelium.managers.engine import Engine

PAUSE_S = 0.05
"""Before the first new try."""
T = TypeVar("T")
Talk = Callable[[Engine], Awaitable[Given]]


async def whole(desk: GatewayContext, ask: Ask) -> web.Response:
    """Answer an OpenAI request in one piece. Raises ApiError."""
    given = await seated(desk, ask.request, lambda engine: talk(desk, ask, engine))
    return given.response()


async def seated(desk: GatewayContext, request: Request, talk_to: Talk) -> Given:
    """Let `talk_to` ask an engine, and another one if that breaks. Raises ApiError."""
    while True:
        try:
            seat = await desk.seats.seat(request)
        except RefusedError as error:
            raise refused(error) from None
        try:
            given = await unless_cut(seat, talk_to(seat.engine))
            if given.status >= 500:
                failed(request, given.status, given.body)
        except BrokenError as error:
            await again(desk, seat, str(error))
            continue
        except asyncio.CancelledError:
            seat.finish("cancelled")
            raise
        except BaseException as error:
            seat.finish(outcome_of(error))
            raise
        seat.first_token()
        over(desk, seat, outcome_at(given.status), given.tokens)
        return given


def outcome_at(status: int) -> Outcome:
    """What an engine's status makes of a request: what is wrong with it is its sender's."""
    return "completed" if status < 400 else "refused" if status < 500 else "failed"


def outcome_of(error: BaseException) -> Outcome:
    """The same of an error that ended it."""
    return outcome_at(error.status) if isinstance(error, ApiError) else "failed"


def failed(request: Request, status: int, body: bytes) -> NoReturn:
    """An engine answered with a server error: BrokenError at first, ApiError from then on."""
    if status != BUSY and not request.retries:
        raise BrokenError(f"it answered {status}")
    raise engine_error(status, body)


async def again(desk: GatewayContext, seat: Seat, why: str) -> None:
    """Give a broken engine's seat back; raises ApiError (503) if it was the last try.

    Then pause, each time for longer: the cluster needs a moment to see that the engine is gone.
    """
    seat.lost(why)
    seat.request.retries += 1
    if seat.request.retries > desk.settings.retries:
        error = RefusedError(503, f"engines broke {seat.request.retries} times; {why}", 1.0)
        desk.seats.give_up(seat.request, error)
        raise refused(error)
    try:
        await asyncio.sleep(PAUSE_S * 10 ** (seat.request.retries - 1))
    except asyncio.CancelledError:
        desk.seats.cancelled(seat.request)
        raise


async def unless_cut(seat: Seat, answer: Awaitable[T]) -> T:
    """Return the answer; raises BrokenError if the cluster ends the engine meanwhile."""
    task = asyncio.current_task()
    assert task is not None
    seat.when_cut(task.cancel)
    try:
        return await answer
    except asyncio.CancelledError:
        if seat.cut and not task.uncancel():  # else the client has gone
            raise BrokenError(seat.cut) from None
        raise


def over(desk: GatewayContext, seat: Seat, outcome: Outcome, tokens: tuple[int, int]) -> None:
    """Give a seat back, and charge what was used."""
    prompt, output = tokens
    seat.finish(outcome, prompt_tokens=prompt, output_tokens=output)
    desk.limits.used(seat.request.organization, prompt + output)


async def talk(desk: GatewayContext, ask: Ask, engine: Engine) -> Given:
    """Ask an engine for a completion, a chat or embeddings, in one piece."""
    if engine.api == "kserve":
        return await text_model(desk, ask, engine)
    only_openai(engine)
    payload = openai_payload(ask, engine)
    async with called(desk, engine, ask.path, payload, ask.request.id) as answer:
        body = await answer.read()
    check_loaded(engine, answer.status, body)
    if answer.status == NOT_FOUND:
        raise engine_error(answer.status, body)
    if answer.status != 200:
        return Given(answer.status, body, answer.content_type)
    told = object_of(engine, body)
    return failure_in(told) or Given(200, body, answer.content_type, usage_of(told))


def only_openai(engine: Engine) -> None:
    """Raises ApiError (422) for a user's own class, which takes any JSON."""
    if engine.extra.get("plain"):
        raise ApiError(422, f"{engine.model} takes POST /predict/{engine.model} only")


async def text_model(desk: GatewayContext, ask: Ask, engine: Engine) -> Given:
    """Ask a text model behind KServe's protocol."""
    gives, needed = engine.extra.get("outputs"), output_of(ask)
    if gives is not None and needed not in gives:
        why = f"{engine.model} gives {', '.join(gives)}: use /v2/models/.../infer or /predict"
        raise ApiError(422, why, param="model")
    payload = kserve_payload(ask)
    async with called(desk, engine, infer_path(engine), payload, ask.request.id) as answer:
        raw = await answer.read()
    check_loaded(engine, answer.status, raw)
    given = Given(answer.status, raw)
    if answer.status == 200:
        given = failure_in(found := object_of(engine, raw)) or given
    if given.status >= 500:
        return given
    if given.status != 200:
        raise engine_error(given.status, given.body)
    told = openai_answer(ask, found)
    return Given(200, orjson.dumps(told), tokens=usage_of(told))
