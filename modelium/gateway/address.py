"""Where the gateway listens, and the certificate that it shows there."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from modelium.addresses import is_loopback
from modelium.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate (chain) and its key, as their files were."""

    chain: bytes
    key: bytes
    context: ssl.SSLContext = field(compare=False)
    """What is made of them for HTTP."""


def read_certificate(chain: Path, key: Path) -> Certificate:
    """Both files (PEM) as they are now. Raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(chain, key)
        return Certificate(chain.read_bytes(), key.read_bytes(), context)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS cannot be set up from {chain}, {key}: {error}") from None


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 chooses one."""
    certificate: Certificate | None = None
    """None: without TLS."""
    grpc_port: int | None = None
    """Of KServe's gRPC, which is not served if it is None; 0 chooses one."""

    @property
    def loopback(self) -> bool:
        """Nobody from outside this machine can reach it."""
        return is_loopback(self.host)
