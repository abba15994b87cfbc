"""The gateway in front of a cluster, as configured."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.config import Config

if TYPE_CHECKING:
    from modelium.gateway.desk import Desk


def gateway(config: Config) -> tuple[Desk, AbstractAsyncContextManager[str]]:
    """Its desk, and the context in which it listens: it serves once the desk is opened."""
    from modelium.gateway.desk import Desk, Settings
    from modelium.gateway.keys import Keys
    from modelium.gateway.limits import Limits, Rate
    from modelium.gateway.server import Address, listening

    given = config.gateway
    certificate, key = given.tls_certificate, given.tls_key
    address = Address(
        given.host,
        given.port,
        Path(certificate) if certificate else None,
        Path(key) if key else None,
        given.grpc_port,
    )
    rates = {name: Rate(**asdict(limit)) for name, limit in given.organizations.items()}
    limits = Limits(time.monotonic, Rate(**asdict(given.limits)), rates)
    settings = Settings(
        max_body_bytes=given.max_body,
        allowed_origins=tuple(given.allowed_origins),
        open_admin=address.loopback,
    )
    keys = Keys(Path(given.keys)) if given.keys else None
    desk = Desk(limits, keys, settings)
    return desk, listening(desk, address)


def grpc_note(config: Config) -> list[str]:
    """What to say at the start where KServe's gRPC is served beside HTTP."""
    given = config.gateway
    return [f"KServe's gRPC is at {given.host}:{given.grpc_port}"] if given.grpc_port else []


def without_keys(config: Config) -> list[str]:
    """What to say at the start where keys are asked for and there are none yet."""
    from modelium.gateway.keys import Keys

    file = config.gateway.keys
    if not file or Keys(Path(file)).all():
        return []
    return [f"no API key is in {file} yet: calls are refused until `modelium key make` adds one"]
