"""Connections of clients, from when they are accepted: how many, and how long without a request.

A connection that sends no whole request (half-open, or a head that comes byte by byte) has
`FIRST_REQUEST_S`, its TLS handshake `HANDSHAKE_S` of that. Where there are too many, those go that
have been silent for longest, so that a flood of them keeps no client out.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import orjson
from aiohttp import web

from modelium.gateway.address import Certificate
from modelium.gateway.errors import ApiError

FIRST_REQUEST_S = 30.0
"""A client has so long to send the head of its first request."""
HANDSHAKE_S = 10.0
MOST_SILENT = 4096
"""Connections that have sent no request yet; honest ones send it within a round trip."""
OTHER_FILES = 200
"""What else is open: the journal, logs, listening sockets."""
_FULL = orjson.dumps(ApiError(503, "too many connections are open").as_dict())
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections there may be, and how long one may send no request."""

    connections: int
    """Of HTTP; of KServe's gRPC so many calls at a time."""
    silent: int
    first_request_s: float = FIRST_REQUEST_S
    handshake_s: float = HANDSHAKE_S

    @classmethod
    def of_this_process(cls, protocols: int = 1) -> Bounds:
        """By the limit of open files, of which each protocol gets the same part.

        Each client may need a connection to an engine as well.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = 1 << 20 if soft == resource.RLIM_INFINITY else soft
        most = max(1, (files - min(OTHER_FILES, files // 2)) // (2 * protocols))
        return cls(most, min(MOST_SILENT, most))


class Connections:
    """All connections of one gateway."""

    def __init__(self, certificate: Certificate | None, bounds: Bounds) -> None:
        self.certificate = certificate
        """Shown to new connections, of gRPC as well; may be exchanged at any time."""
        self.bounds = bounds
        self._server: web.Server | None = None
        self._all: dict[web.RequestHandler, _Connection] = {}
        # Both in the order in which they fell silent, the longest silence first.
        self._silent: dict[_Connection, float] = {}
        self._idle: dict[_Connection, None] = {}
        self._waker: asyncio.TimerHandle | None = None

    def serve(self, server: web.Server) -> None:
        """Hand what is accepted to `server`."""
        self._server = server

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that comes in."""
        assert self._server is not None, "connections are accepted once they are served"
        tls = None if self.certificate is None else self.certificate.context
        return _Connection(self, self._server(), tls)

    def __contains__(self, connection: _Connection) -> bool:
        return connection.handler in self._all

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def at_work(self, handler: web.RequestHandler) -> Iterator[None]:
        """A request of this connection is being answered."""
        connection = self._all.get(handler)
        if connection is None:  # it is gone already
            yield
            return
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)
        try:
            yield
        finally:
            if connection in self:
                self._idle[connection] = None

    def close(self) -> None:
        """Drop what has sent no request yet."""
        if self._waker is not None:
            self._waker.cancel()
        for connection in list(self._silent):
            connection.drop()

    def opened(self, connection: _Connection) -> bool:
        """One has come; False if there is no room for it, since all others are at work."""
        if len(self._silent) >= self.bounds.silent:
            next(iter(self._silent)).drop()
        if len(self._all) >= self.bounds.connections:
            longest = next(iter(self._silent), None) or next(iter(self._idle), None)
            if longest is None:
                return False
            longest.drop()
        self._all[connection.handler] = connection
        loop = asyncio.get_running_loop()
        self._silent[connection] = loop.time() + self.bounds.first_request_s
        if self._waker is None:
            self._waker = loop.call_later(self.bounds.first_request_s, self._look)
        return True

    def lost(self, connection: _Connection) -> None:
        """One is gone."""
        self._all.pop(connection.handler, None)
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)

    def _look(self) -> None:
        """Drop those whose time is over."""
        self._waker, loop = None, asyncio.get_running_loop()
        while self._silent:
            connection, due_s = next(iter(self._silent.items()))
            if due_s > loop.time():
                self._waker = loop.call_at(due_s, self._look)
                return
            connection.drop()


class _Connection(asyncio.Protocol):
    """One connection: TLS first, where it is asked for, then the HTTP server's own protocol."""

    __slots__ = ("_begun", "_connections", "_securing", "_tls", "_transport", "handler")

    def __init__(
        self, connections: Connections, handler: web.RequestHandler, tls: ssl.SSLContext | None
    ) -> None:
        self.handler, self._connections, self._tls = handler, connections, tls
        self._transport: asyncio.Transport
        self._begun = False
        self._securing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        if self._securing is not None:  # the handshake is done
            if self in self._connections:
                self._begin()
            else:
                transport.abort()
        elif not self._connections.opened(self):
            if self._tls is None:
                transport.write(FULL)
            transport.close()
        elif self._tls is None:
            self._begin()
        else:
            # The loop's own handshake can be given up only by its end, so it begins anew on the
            # socket, from which nothing has been read yet.
            taken = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            loop = asyncio.get_running_loop()
            self._securing = loop.create_task(self._secure(taken, self._tls))
            transport.abort()

    async def _secure(self, taken: socket.socket, tls: ssl.SSLContext) -> None:
        loop, limit_s = asyncio.get_running_loop(), self._connections.bounds.handshake_s
        try:
            await loop.connect_accepted_socket(
                lambda: self, taken, ssl=tls, ssl_handshake_timeout=limit_s
            )
        except OSError:  # its mistake, or it left
            self._connections.lost(self)

    def _begin(self) -> None:
        self._begun = True
        self.handler.connection_made(self._transport)

    def drop(self) -> None:
        """End it at once."""
        self._connections.lost(self)
        if self._securing is not None:
            self._securing.cancel()
        self._transport.abort()

    # The rest is the HTTP server's.

    def data_received(self, data: bytes) -> None:
        if self._begun:
            self.handler.data_received(data)

    def eof_received(self) -> None:
        if self._begun:
            self.handler.eof_received()

    def pause_writing(self) -> None:
        if self._begun:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if self._begun:
            self.handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._begun:
            self._begun = False
            self.handler.connection_lost(error)
            self._connections.lost(self)
        elif self._securing is None or self._securing.done():
            self._connections.lost(self)


CONNECTIONS = web.AppKey("connections", Connections)
