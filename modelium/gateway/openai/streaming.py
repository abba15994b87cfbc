"""A request that is answered piece by piece, as server-sent events.

While its model is loaded, and whenever its engine is silent for long, a streaming client gets
comments, which no client shows but which keep its connection alive; from the first on errors can
only be told within the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NoReturn

import aiohttp
import orjson
from aiohttp import web

from modelium.gateway.context import GatewayContext
from modelium.gateway.engines import (
    BAD_GATEWAY,
    BrokenError,
    Given,
    called,
    check_loaded,
    engine_error,
    openai_payload,
)  # fmt: skip
from modelium.gateway.errors import ApiError, refused
from modelium.gateway.openai.kserve_adapter import as_stream
from modelium.gateway.openai.sse_parser import Pieces
from modelium.gateway.openai.sse_writer import ClientGoneError, Outlet
from modelium.gateway.proxy import (
    again,
    failed,
    only_openai,
    outcome_of,
    over,
    text_model,
    unless_cut,
)
from modelium.gateway.request_parsing import Ask
from modelium.live.requests.interface import RefusedError, Seat, Waiting

PATIENCE_S = 0.25
"""A wait this short is not worth a comment."""
COMMENT_EVERY_S = 1.0
SILENCE_S = 10.0
"""An engine's silence, before its first token or between two, is not passed on for longer."""


async def stream(desk: GatewayContext, http: web.Request, ask: Ask) -> web.StreamResponse:
    """Answer an OpenAI request piece by piece. Raises ApiError as long as nothing was sent."""
    out = Outlet(http)
    try:
        while True:
            seat = await _take(desk, ask, out)
            try:
                return await _answer(desk, ask, seat, out)
            except BrokenError as error:
                await again(desk, seat, str(error))
    except ApiError as error:
        return await out.fail(error)
    except ClientGoneError:
        return out.response


async def _take(desk: GatewayContext, ask: Ask, out: Outlet) -> Seat:
    """A seat; while there is none, comments. Raises ApiError."""
    comments: _Comments | None = None
    now: Waiting

    def hear(waiting: Waiting) -> None:
        nonlocal comments, now
        now = waiting
        if comments is None:
            comments = _Comments(
                ask.request.model, out, lambda: _standing(now), PATIENCE_S, COMMENT_EVERY_S
            )

    try:
        return await desk.seats.seat(ask.request, hear)
    except RefusedError as error:
        raise refused(error) from None
    finally:
        if comments is not None:
            comments.end()


def _standing(waiting: Waiting) -> str:
    """Where a request that waits stands."""
    left = f", about {waiting.left_s:.0f} s to go" if waiting.left_s is not None else ""
    return f"{waiting.stage} {waiting.share:.0%}{left}, position {waiting.position}"


class _Comments:
    """Comments for a client that gets nothing else; pieces that come cost nothing for it.

    The first comes after `first_s`. Then it looks every `every_s` whether anything was sent since
    the last look.
    """

    def __init__(
        self,
        model: str,
        out: Outlet,
        says: Callable[[], str],
        first_s: float,
        every_s: float,
    ) -> None:
        """`says` is asked for each comment what is to be told of the model."""
        self._model, self._out, self._says, self._every_s = model, out, says, every_s
        self._writing: asyncio.Task[None] | None = None
        out.sent = False
        self._first = asyncio.get_running_loop().call_later(first_s, self._begin)

    def end(self) -> None:
        """The client gets something again."""
        self._first.cancel()
        if self._writing is not None:
            self._writing.cancel()

    def _begin(self) -> None:
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        # A client that is gone has its handler cancelled, and this with it.
        with contextlib.suppress(ClientGoneError):
            while True:
                if not self._out.sent:
                    await self._out.write(f": {self._model}: {self._says()}\n\n".encode())
                self._out.sent = False
                await asyncio.sleep(self._every_s)


async def _answer(desk: GatewayContext, ask: Ask, seat: Seat, out: Outlet) -> web.StreamResponse:
    """Pass the answer on. Raises BrokenError if the engine breaks before it has begun."""
    pieces = Pieces(hide_usage=not ask.wants_usage)
    look_s = SILENCE_S / 2
    silence = _Comments(ask.request.model, out, lambda: "its engine is at work", look_s, look_s)
    try:
        tokens = await unless_cut(seat, _parts(desk, ask, seat, out, pieces))
    except BrokenError as error:
        if not pieces.begun:
            raise
        prompt, output = pieces.tokens
        desk.limits.used(ask.request.organization, prompt + output)
        seat.lost(str(error), prompt_tokens=prompt, output_tokens=output)
        why = f"the engine broke in the middle of the answer: {error}"
        return await out.fail(ApiError(503, why, code="engine_lost"))
    except (asyncio.CancelledError, ClientGoneError):
        # A client that has read the last piece may hang up before we know that it was the last.
        over(desk, seat, "completed" if pieces.complete else "cancelled", pieces.tokens)
        raise
    except BaseException as error:
        over(desk, seat, outcome_of(error), pieces.tokens)
        raise
    finally:
        silence.end()
    over(desk, seat, "completed", tokens)
    return out.response


async def _parts(
    desk: GatewayContext, ask: Ask, seat: Seat, out: Outlet, pieces: Pieces
) -> tuple[int, int]:
    if seat.engine.api == "kserve":
        return await _one_piece(desk, ask, seat, out)
    only_openai(seat.engine)
    await _pass_on(desk, ask, seat, out, pieces)
    return pieces.tokens


async def _pass_on(desk: GatewayContext, ask: Ask, seat: Seat, out: Outlet, pieces: Pieces) -> None:
    payload = openai_payload(ask, seat.engine)
    async with called(desk, seat.engine, ask.path, payload, ask.request.id) as answer:
        if answer.status != 200:
            await _refuse(ask, seat, answer)
        if answer.content_type != "text/event-stream":
            why = f"{seat.engine.instance} answered with {answer.content_type}, not with a stream"
            raise ApiError(BAD_GATEWAY, why)
        async for data in answer.content.iter_any():
            begun = pieces.begun
            ready = pieces.feed(data)
            if pieces.begun and not begun:
                seat.first_token()
            else:
                seat.progress()
            if ready:
                await out.write(ready)
            if pieces.failure is not None:
                _tell(ask, seat, pieces.failure, pieces.begun)
    if not pieces.complete:
        raise BrokenError(f"{seat.engine.instance}: its stream ended before its end")


def _tell(ask: Ask, seat: Seat, failure: Given, begun: bool) -> NoReturn:
    """The engine told a failure within its stream: raises ApiError or BrokenError.

    What the request is to blame for is told in the engine's own words, and the engine is well.
    """
    if failure.status >= 500 and not begun:
        failed(ask.request, failure.status, failure.body)
    error = engine_error(failure.status, failure.body)
    raise error if failure.status < 500 else BrokenError(f"{seat.engine.instance}: {error}")


async def _refuse(ask: Ask, seat: Seat, answer: aiohttp.ClientResponse) -> None:
    """The engine refuses: its own words, as an ApiError."""
    raw = await answer.read()
    check_loaded(seat.engine, answer.status, raw)
    if answer.status >= 500:
        failed(ask.request, answer.status, raw)
    raise engine_error(answer.status, raw)


async def _one_piece(desk: GatewayContext, ask: Ask, seat: Seat, out: Outlet) -> tuple[int, int]:
    """Engines that cannot stream answer in one piece; gives the tokens."""
    given = await text_model(desk, ask, seat.engine)
    if given.status != 200:
        failed(ask.request, given.status, given.body)
    seat.first_token()
    await out.write(as_stream(ask, orjson.loads(given.body)))
    return given.tokens
