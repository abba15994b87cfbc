"""The gateway's socket: address, TLS, and an end in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from modelium.errors import ConfigError
from modelium.gateway.access.connections import Bounds, Connections
from modelium.gateway.address import Address
from modelium.gateway.app import make_app
from modelium.gateway.context import GatewayContext

LINGER_S = 2.0
"""What is still being sent when the server ends has this long."""
KEEP_ALIVE_S = 75.0
"""A client's idle connection is closed after this."""
BACKLOG = 4096
"""Connections that may wait to be accepted: a thousand clients may come at once."""


log = logging.getLogger(__name__)


def _plain(record: logging.LogRecord) -> bool:
    """What is no HTTP is its sender's mistake: a line, where the library logs a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        words = " ".join(getattr(error, "message", str(error)).split())
        record.msg, record.args = f"{record.msg}: %.200s", (*(record.args or ()), words)
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return True


log.addFilter(_plain)


@asynccontextmanager
async def listening(
    desk: GatewayContext, address: Address, bounds: Bounds | None = None
) -> AsyncIterator[str]:
    """Serve until the body ends; gives the URL. Raises ConfigError if that is not possible."""
    bounds = bounds or Bounds.of_this_process(1 if address.grpc_port is None else 2)
    desk.connections = connections = Connections(address.certificate, bounds)
    # A client that leaves cancels its handler, which closes the engine's connection.
    runner = web.AppRunner(
        make_app(desk, connections),
        access_log=None,
        logger=log,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=LINGER_S,
    )
    await runner.setup()
    assert runner.server is not None
    connections.serve(runner.server)
    listener: asyncio.Server | None = None
    try:
        try:
            listener = await asyncio.get_running_loop().create_server(
                connections.accept, address.host, address.port, backlog=BACKLOG
            )
        except OSError as error:
            where = f"{address.host}:{address.port}"
            raise ConfigError(
                f"the gateway cannot listen on {where}: {error.strerror or error}."
                " Choose another gateway.port or gateway.host"
            ) from None
        host, port = listener.sockets[0].getsockname()[:2]
        scheme = "https" if address.certificate else "http"
        async with AsyncExitStack() as stack:
            if address.grpc_port is not None:
                from modelium.gateway.kserve.grpc import grpc_listening

                desk.grpc = await stack.enter_async_context(grpc_listening(desk, address))
            yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        if listener is not None:
            listener.close()
        connections.close()
        await runner.cleanup()
