"""The gateway in front of a cluster, as configured."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path

from modelium.config import Config
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Limits, Rate
from modelium.gateway.address import Address, read_certificate
from modelium.gateway.context import GatewayContext, Settings
from modelium.gateway.server import listening
from modelium.serving.launch_spec import stamp


class GatewayFactory:
    """What the section `gateway` says of keys, limits, TLS and web pages."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError if a file that it names cannot be used."""
        given, certificate = config.gateway, None
        self.files = [Path(file) for file in (given.tls_certificate, given.tls_key) if file]
        """The certificate and its key."""
        self.seen = [stamp(file) for file in self.files]
        """How they looked before they were read."""
        if self.files:
            certificate = read_certificate(*self.files)
        self.address = Address(given.host, given.port, certificate, given.grpc_port)
        self.usual = Rate(**asdict(given.limits))
        self.special = {name: Rate(**asdict(one)) for name, one in given.organizations.items()}
        settings = Settings(
            max_body_bytes=given.max_body,
            allowed_origins=tuple(given.allowed_origins),
            aliases=given.aliases,
            open_admin=self.address.loopback,
        )
        keys = Keys(Path(given.keys)) if given.keys else None
        self.desk = GatewayContext(Limits(time.monotonic, self.usual, self.special), keys, settings)

    def listening(self) -> AbstractAsyncContextManager[str]:
        """The context in which it listens; gives the URL. It serves once the desk is opened.

        Entering raises ConfigError if that is not possible.
        """
        return listening(self.desk, self.address)

    def change(self, other: GatewayFactory) -> bool:
        """Do as `other` says from now on; True if new connections get another certificate."""
        desk, certificate = self.desk, other.address.certificate
        desk.limits.change(other.usual, other.special)
        desk.settings, desk.keys = other.desk.settings, other.desk.keys
        renewed = desk.connections.certificate != certificate
        desk.connections.certificate, self.files = certificate, other.files
        return renewed

    def grpc_notes(self) -> list[str]:
        """Where KServe's gRPC is, if it is served beside HTTP."""
        return [f"KServe's gRPC is at {self.desk.grpc}"] if self.desk.grpc else []
