"""The gateway in front of a cluster, as configured."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path

from modelium.config import Config
from modelium.live.cluster import LiveCluster
from modelium.live.operations import Operations


def gateway(
    config: Config, cluster: LiveCluster, operations: Operations
) -> AbstractAsyncContextManager[str]:
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
    )
    rates = {name: Rate(**asdict(limit)) for name, limit in given.organizations.items()}
    limits = Limits(cluster.now_s, Rate(**asdict(given.limits)), rates)
    settings = Settings(
        max_body_bytes=given.max_body,
        allowed_origins=tuple(given.allowed_origins),
        open_admin=address.loopback,
    )
    keys = Keys(Path(given.keys)) if given.keys else None
    return listening(Desk(cluster.reception, operations, limits, keys, settings), address)


def without_keys(config: Config) -> list[str]:
    """What to say at the start where keys are asked for and there are none yet."""
    from modelium.gateway.keys import Keys

    file = config.gateway.keys
    if not file or Keys(Path(file)).all():
        return []
    return [f"no API key is in {file} yet: calls are refused until `modelium key make` adds one"]
