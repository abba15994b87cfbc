"""The gateway's socket: address, TLS, and an end in order."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from modelium.errors import ConfigError
from modelium.gateway.app import make_app
from modelium.gateway.desk import Desk

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


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 chooses one."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    grpc_port: int | None = None
    """Of KServe's gRPC, which is not served if it is None; 0 chooses one."""

    @property
    def loopback(self) -> bool:
        """Nobody from outside this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


@asynccontextmanager
async def listening(desk: Desk, address: Address) -> AsyncIterator[str]:
    """Serve until the body ends; gives the URL. Raises ConfigError if that is not possible."""
    # A client that leaves cancels its handler, which closes the engine's connection.
    runner = web.AppRunner(
        make_app(desk),
        access_log=None,
        logger=log,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=LINGER_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(
            runner, address.host, address.port, ssl_context=_tls(address), backlog=BACKLOG
        )
        try:
            await site.start()
        except OSError as error:
            where = f"{address.host}:{address.port}"
            raise ConfigError(
                f"the gateway cannot listen on {where}: {error.strerror or error}."
                " Choose another gateway.port or gateway.host"
            ) from None
        host, port = runner.addresses[0][:2]
        scheme = "https" if address.tls_certificate else "http"
        async with AsyncExitStack() as stack:
            if address.grpc_port is not None:
                from modelium.gateway.kserve_grpc import grpc_listening

                desk.grpc = await stack.enter_async_context(grpc_listening(desk, address))
            yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()


def _tls(address: Address) -> ssl.SSLContext | None:
    if address.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(address.tls_certificate, address.tls_key)
    except (OSError, ssl.SSLError) as error:
        files = f"{address.tls_certificate}, {address.tls_key}"
        raise ConfigError(f"TLS cannot be set up from {files}: {error}") from None
    return context
