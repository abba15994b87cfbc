"""Who could call a server with this configuration, and what is to be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelium.addresses import is_loopback

if TYPE_CHECKING:
    from modelium.config.schema import Config


def exposed(config: Config) -> str:
    """Why this must not be served: others can reach it and need no key. "" if it may be."""
    given = config.gateway
    if given.keys is not None or given.insecure or is_loopback(given.host):
        return ""
    return (
        f"gateway.host is {given.host}, which others can reach, and there is no gateway.keys, so"
        " anybody could use the models: set gateway.keys (`modelium key make` writes the file),"
        " bind to 127.0.0.1, or say --insecure (gateway.insecure: true)"
    )


def access_notes(config: Config) -> list[str]:
    """What to say of who may call, and of who may read the metrics. Raises ConfigError."""
    from modelium.gateway.access.keys import Keys

    given, metrics, notes = config.gateway, config.metrics, []
    if given.keys and not Keys(Path(given.keys)).all():
        notes.append(
            f"no API key is in {given.keys} yet: calls are refused until `modelium key make` adds"
            " one"
        )
    if not (given.keys or is_loopback(given.host)):
        notes.append(f"insecure: everybody who reaches {given.host} may use the models")
    if metrics.enabled and not is_loopback(metrics.host):
        notes.append(
            f"everybody who reaches {metrics.host}:{metrics.port} may read the metrics, names of"
            " models among them (metrics.host)"
        )
    return notes
