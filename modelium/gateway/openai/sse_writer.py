"""The client's side of a streamed answer: bounded, and given up if the client does not read."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
from aiohttp import web

from modelium.gateway.context import DESK
from modelium.gateway.errors import ApiError
from modelium.gateway.openai.kserve_adapter import DONE

FULL_BYTES = 32 << 10
"""With more than this unsent the client may be one that does not read."""
GONE = (ConnectionError, aiohttp.ClientConnectionError, TimeoutError)
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would keep pieces back
}


class ClientGoneError(Exception):
    """The client left, or reads no more."""


class Outlet:
    """Server-sent events to one client; headers are sent with the first piece."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self._patience_s = http.app[DESK].settings.write_timeout_s
        self.response = web.StreamResponse(headers=HEADERS)
        self.sent = False
        """Something was sent since somebody last set this to False."""

    @property
    def begun(self) -> bool:
        """Headers are out: an error can only be told within the stream."""
        return self.response.prepared

    async def write(self, data: bytes) -> None:
        """Send a piece. Raises ClientGoneError."""
        self.sent = True
        transport = self._http.transport
        if transport is None or transport.is_closing():
            raise ClientGoneError
        try:
            if not self.response.prepared:
                await self.response.prepare(self._http)
            if transport.get_write_buffer_size() + len(data) < FULL_BYTES:
                await self.response.write(data)
                return
            async with asyncio.timeout(self._patience_s):
                await self.response.write(data)
        except GONE:
            transport.abort()
            raise ClientGoneError from None

    async def fail(self, error: ApiError) -> web.StreamResponse:
        """Tell an error, as the answer or within it. Raises ApiError if nothing was sent yet."""
        if not self.begun:
            raise error
        await self.write(b"data: " + orjson.dumps(error.as_dict()) + b"\n\n" + DONE)
        return self.response


async def send(http: web.Request, answer: web.StreamResponse) -> None:
    """Send a whole answer that is too large to be left to chance; the client has its time."""
    transport = http.transport
    if transport is None:
        return
    try:
        async with asyncio.timeout(http.app[DESK].settings.write_timeout_s):
            await answer.prepare(http)
            await answer.write_eof()
    except GONE:
        transport.abort()
