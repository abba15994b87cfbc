"""The gateway in front of a cluster, as configured."""

from __future__ import annotations

import ssl
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path

from modelium.config import Config
from modelium.gateway.desk import Desk, Settings
from modelium.gateway.keys import Keys
from modelium.gateway.limits import Limits, Rate
from modelium.gateway.server import Address, listening, tls


class Front:
    """What the section `gateway` says of keys, limits, TLS and web pages."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError if a file that it names cannot be used."""
        given = config.gateway
        certificate, key = given.tls_certificate, given.tls_key
        self.address = Address(
            given.host,
            given.port,
            Path(certificate) if certificate else None,
            Path(key) if key else None,
            given.grpc_port,
        )
        self.tls: ssl.SSLContext | None = tls(self.address)
        self.certificate = _bytes(self.address)
        self.usual = Rate(**asdict(given.limits))
        self.special = {name: Rate(**asdict(one)) for name, one in given.organizations.items()}
        settings = Settings(
            max_body_bytes=given.max_body,
            allowed_origins=tuple(given.allowed_origins),
            aliases=given.aliases,
            open_admin=self.address.loopback,
        )
        keys = Keys(Path(given.keys)) if given.keys else None
        self.desk = Desk(Limits(time.monotonic, self.usual, self.special), keys, settings)

    def listening(self) -> AbstractAsyncContextManager[str]:
        """The context in which it listens; gives the URL. It serves once the desk is opened.

        Entering raises ConfigError if that is not possible.
        """
        return listening(self.desk, self.address)

    def change(self, other: Front) -> bool:
        """Do as `other` says from now on; True if new connections get another certificate."""
        desk, renewed = self.desk, self.certificate != other.certificate
        desk.limits.change(other.usual, other.special)
        desk.settings, desk.keys = other.desk.settings, other.desk.keys
        desk.connections.tls = other.tls
        self.certificate = other.certificate
        return renewed


def grpc_note(config: Config) -> list[str]:
    """What to say at the start where KServe's gRPC is served beside HTTP."""
    given = config.gateway
    return [f"KServe's gRPC is at {given.host}:{given.grpc_port}"] if given.grpc_port else []


def _bytes(address: Address) -> list[bytes]:
    """The files of a certificate, as they are now."""
    files = (address.tls_certificate, address.tls_key)
    return [file.read_bytes() for file in files if file is not None]
