"""A small HTTP/1.1 server on httptools: keep-alive, chunked answers, clients that go away."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qs, unquote

import httptools
import orjson

MAX_BODY_BYTES = 64 << 20
MAX_HEADER_BYTES = 64 << 10
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request, and the one answer to it."""

    __slots__ = (
        "_chunked", "_connection", "_keep_alive", "body", "gone", "headers", "method", "on_gone",
        "path", "query", "refused",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keep_alive = self._chunked = True
        self.method = self.path = ""
        self.query: dict[str, list[str]] = {}
        self.headers: dict[bytes, bytes] = {}
        """Names in lower case."""
        self.body = b""
        self.gone = False
        """The client has left; what is sent now goes nowhere."""
        self.refused: tuple[int, str] | None = None
        """Status and reason, if it was not understood."""
        self.on_gone: Callable[[], None] | None = None
        """Called when the client leaves before the answer is complete."""

    def answer(self, status: int, content: Any, kind: str = "application/json") -> None:
        """Send the whole answer: an object for JSON, or bytes."""
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        head = self._head(status, kind)
        shown = b"" if self.method == "HEAD" else body
        self._connection.write(b"%b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), shown))
        self.close()

    def fail(self, status: int, why: str, kind: str = "BadRequestError") -> None:
        """Answer with an error of OpenAI's shape."""
        error = {"message": why, "type": kind, "param": None, "code": status}
        self.answer(status, {"error": error})

    def open(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        """Begin an answer that comes in parts."""
        framing = b"\r\ntransfer-encoding: chunked" if self._chunked else b""
        self._connection.write(self._head(200, kind) + framing + b"\r\n\r\n")

    def send(self, part: bytes) -> None:
        """Send the next part."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(part), part) if self._chunked else part)

    def close(self, *, whole: bool = True) -> None:
        """The answer is complete; `whole=False` after `open` and `send` says so to the client."""
        if not whole and self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self.on_gone = None
        self._connection.answered(self._keep_alive)

    def _head(self, status: int, kind: str) -> bytes:
        closing = "" if self._keep_alive else "\r\nconnection: close"
        reason = _REASONS.get(status, "")
        return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}{closing}".encode()


Handler = Callable[[Exchange], None]


class Connection(asyncio.Protocol):
    """One client: parses its requests and hands them to `handle`, one at a time and in order."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._incoming: Exchange | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._url = b""
        self._transport: asyncio.Transport | None = None
        self._deaf = False
        """What comes now is no request any more: hang up when all before it is answered."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True
            if self._current is None and self._transport is not None:
                self._transport.close()
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(400, f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        if (current := self._current) is not None:
            current.gone = True
            if current.on_gone is not None:
                current.on_gone()

    # What httptools calls

    def on_message_begin(self) -> None:
        self._incoming = Exchange(self)
        self._parts, self._size, self._url = [], 0, b""

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow(len(url), MAX_HEADER_BYTES, 414)

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._incoming is not None
        self._incoming.headers[name.lower()] = value
        self._grow(len(name) + len(value), MAX_HEADER_BYTES, 431)

    def on_headers_complete(self) -> None:
        assert self._incoming is not None
        self._size = 0
        length = self._incoming.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            self._grow(int(length), MAX_BODY_BYTES, 413)
        elif self._incoming.headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._grow(len(body), MAX_BODY_BYTES, 413)

    def on_message_complete(self) -> None:
        exchange, self._incoming = self._incoming, None
        assert exchange is not None
        path, _, query = self._url.partition(b"?")
        exchange.method = self._parser.get_method().decode()
        exchange.path = unquote(path.decode("latin-1"))
        exchange.query = parse_qs(query.decode("latin-1")) if query else {}
        exchange.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        exchange._keep_alive = self._parser.should_keep_alive()
        exchange._chunked = self._parser.get_http_version() != "1.0"
        self._queue.append(exchange)
        self._next()

    # What exchanges call

    def write(self, data: bytes) -> None:
        """Send; nothing happens once the client has left."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """The current exchange is over."""
        self._current = None
        if not keep_alive or (self._deaf and not self._queue):
            if self._transport is not None:
                self._transport.close()
        elif self._queue:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._current is None and self._queue:
            self._current = current = self._queue.popleft()
            if current.refused is not None:
                current.fail(*current.refused)
                return
            try:
                self._handle(current)
            except Exception:
                traceback.print_exc()
                current.fail(500, "Internal Server Error", "InternalServerError")

    def _grow(self, n: int, most: int, status: int) -> None:
        self._size += n
        if self._size > most:
            self._refuse(status, f"more than {most} bytes")
            raise httptools.HttpParserError("too large")

    def _refuse(self, status: int, why: str) -> None:
        """In its turn, answer and hang up: what follows on this connection is not understood."""
        self._deaf = True
        refused = Exchange(self)
        refused._keep_alive = False
        refused.refused = status, why
        self._queue.append(refused)
        self._next()
