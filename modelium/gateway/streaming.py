"""A request that is answered piece by piece, as server-sent events.

Whole events are passed on as they come, unread but for the last one, which tells the usage. While
the model is loaded a streaming client gets comments, which no client shows but which keep its
connection alive; from then on errors can only be told within the stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
import orjson
from aiohttp import web

from modelium.gateway.answering import again, over, text_model
from modelium.gateway.asking import Ask
from modelium.gateway.desk import Desk
from modelium.gateway.engines import (
    DONE,
    JSON,
    BrokenError,
    as_stream,
    called,
    openai_payload,
    usage_of,
)  # fmt: skip
from modelium.gateway.errors import ApiError, refused
from modelium.live.seats import RefusedError, Seat, Waiting

PATIENCE_S = 0.25
"""A wait this short is not worth a comment."""
COMMENT_EVERY_S = 1.0
FULL_BYTES = 32 << 10
"""Above this the client may be one that does not read."""
GONE = (ConnectionError, aiohttp.ClientConnectionResetError)
NO_CHOICES = b'"choices":[]'


class ClientGoneError(Exception):
    """The client left, or reads no more."""


class Stream:
    """The client's side: headers are sent with the first piece."""

    def __init__(self, http: web.Request, desk: Desk) -> None:
        self._http, self._desk = http, desk
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-Id": http["id"],
            }
        )

    @property
    def begun(self) -> bool:
        """Headers are out: an error can only be told within the stream."""
        return self.response.prepared

    async def write(self, data: bytes) -> None:
        """Send a piece. Raises ClientGoneError."""
        transport = self._http.transport
        if transport is None or transport.is_closing():
            raise ClientGoneError
        try:
            if not self.response.prepared:
                await self.response.prepare(self._http)
            if transport.get_write_buffer_size() + len(data) < FULL_BYTES:
                await self.response.write(data)
                return
            async with asyncio.timeout(self._desk.settings.write_timeout_s):
                await self.response.write(data)
        except (*GONE, TimeoutError):
            transport.abort()
            raise ClientGoneError from None

    async def fail(self, error: ApiError) -> web.StreamResponse:
        """Tell an error, as the answer or within it. Raises ApiError if nothing was sent yet."""
        if not self.begun:
            raise error
        await self.write(b"data: " + orjson.dumps(error.as_dict()) + b"\n\n" + DONE)
        return self.response


@dataclass(slots=True)
class Passed:
    """What has gone through to the client."""

    content: bool = False
    tokens: tuple[int, int] = (0, 0)
    rest: bytes = field(default=b"")
    """The beginning of an event whose end has not come yet."""


async def stream(desk: Desk, http: web.Request, ask: Ask) -> web.StreamResponse:
    """Answer an OpenAI request piece by piece. Raises ApiError as long as nothing was sent."""
    out = Stream(http, desk)
    try:
        while True:
            seat = await _take(desk, ask, out)
            try:
                return await _pass_on(desk, ask, seat, out)
            except BrokenError as error:
                again(desk, seat, str(error))
    except ApiError as error:
        return await out.fail(error)
    except ClientGoneError:
        return out.response


async def _take(desk: Desk, ask: Ask, out: Stream) -> Seat:
    """A seat; while there is none, comments."""
    told: list[Waiting] = []

    def hear(waiting: Waiting) -> None:
        told[:] = [waiting]

    taking = asyncio.ensure_future(desk.seats.seat(ask.request, hear))
    try:
        wait_s = PATIENCE_S
        while not (await asyncio.wait((taking,), timeout=wait_s))[0]:
            wait_s = COMMENT_EVERY_S
            await out.write(_comment(ask, told))
        return taking.result()
    except (asyncio.CancelledError, ClientGoneError):
        if taking.done() and not taking.cancelled() and not taking.exception():
            taking.result().finish("cancelled")
        raise
    except RefusedError as error:
        raise refused(error) from None
    finally:
        if not taking.done():
            taking.cancel()
            await asyncio.wait((taking,))


def _comment(ask: Ask, told: list[Waiting]) -> bytes:
    if not told:
        return b": queued\n\n"
    now = told[0]
    left = f", about {now.left_s:.0f} s to go" if now.left_s is not None else ""
    return (
        f": {ask.request.model}: {now.stage} {now.share:.0%}{left}, position {now.position}\n\n"
    ).encode()


async def _pass_on(desk: Desk, ask: Ask, seat: Seat, out: Stream) -> web.StreamResponse:
    """Pass the engine's pieces on. Raises BrokenError if it breaks before the first."""
    passed = Passed()
    try:
        if seat.engine.api == "openai" and not seat.engine.extra.get("plain"):
            await _pieces(desk, ask, seat, out, passed)
        else:
            await _one_piece(desk, ask, seat, out, passed)
    except BrokenError as error:
        if not passed.content:
            raise
        seat.lost(str(error))
        why = f"the engine broke in the middle of the answer: {error}"
        return await out.fail(ApiError(503, why, code="engine_lost"))
    except (asyncio.CancelledError, ClientGoneError):
        seat.finish("cancelled")
        raise
    except BaseException:
        seat.finish("failed")
        raise
    over(desk, seat, True, passed.tokens)
    return out.response


async def _pieces(desk: Desk, ask: Ask, seat: Seat, out: Stream, passed: Passed) -> None:
    payload = openai_payload(ask, seat.engine)
    async with called(desk, seat.engine, ask.path, payload, JSON) as answer:
        if answer.status != 200:
            await _not_streamed(ask, seat, answer)
        async for chunk in answer.content.iter_any():
            data = passed.rest + chunk if passed.rest else chunk
            end = data.rfind(b"\n\n") + 2
            passed.rest = data[end:] if end > 1 else data
            if end > 1:
                if not passed.content:
                    passed.content = True
                    seat.first_token()
                else:
                    seat.progress()
                whole = data[:end]
                await out.write(
                    _without_usage(ask, whole, passed) if NO_CHOICES in whole else whole
                )
    if passed.rest.strip() or not passed.content:
        raise BrokenError(f"{seat.engine.instance}: the stream ended in the middle of an event")


def _without_usage(ask: Ask, events: bytes, passed: Passed) -> bytes:
    """Read the usage, and leave it out if the client did not ask for it."""
    kept = []
    for event in events.split(b"\n\n")[:-1]:
        if NO_CHOICES in event and event.startswith(b"data: "):
            passed.tokens = usage_of(orjson.loads(event[6:]))
            if not ask.wants_usage:
                continue
        kept.append(event + b"\n\n")
    return b"".join(kept)


async def _not_streamed(ask: Ask, seat: Seat, answer: aiohttp.ClientResponse) -> None:
    """The engine has refused: its own words, as an ApiError."""
    raw = await answer.read()
    if answer.status >= 500 and not ask.request.retries:
        raise BrokenError(f"it answered {answer.status}")
    try:
        told = orjson.loads(raw)
        message = str(told.get("error", told).get("message") or raw.decode()[:500])
    except (orjson.JSONDecodeError, AttributeError, UnicodeDecodeError):
        message = raw.decode(errors="replace")[:500]
    raise ApiError(answer.status, message)


async def _one_piece(desk: Desk, ask: Ask, seat: Seat, out: Stream, passed: Passed) -> None:
    """Engines that cannot stream answer in one piece."""
    given = await text_model(desk, ask, seat.engine)
    if given.status != 200:
        raise ApiError(given.status, given.body.decode(errors="replace")[:500])
    passed.content, passed.tokens = True, given.tokens
    seat.first_token()
    await out.write(as_stream(ask, orjson.loads(given.body)))
