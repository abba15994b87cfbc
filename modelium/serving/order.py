"""What to serve, and how: the configuration, with the command line's words before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelium.config import Config, find, read
from modelium.config.hardware import on_fleet
from modelium.errors import ConfigError
from modelium.policies import DEFAULT_POLICY


@dataclass(frozen=True)
class Order:
    """What to serve, and how."""

    config: Config
    policy: str = DEFAULT_POLICY
    """As on the command line."""
    emulate: bool = False
    """Serve every model with an emulated engine."""
    keep_engines: bool = False
    """Leave the engines running at the end, for the next start to adopt."""
    seed: int = 0


def order(
    config: Path | None,
    policy: str = "",
    *,
    gpus: str = "",
    host: str | None = None,
    port: int | None = None,
    emulate: bool = False,
    speed: float | None = None,
    keep_engines: bool = False,
    seed: int = 0,
) -> Order:
    """Read the configuration and let the command line's words go first. Raises ModeliumError."""
    path = find(config)
    if path is None and not emulate:
        raise ConfigError(
            "no configuration was found; `modelium init` writes one (or try --emulate --gpus"
            " 4xh100-80g with a configuration that names models)"
        )
    if host == "":
        raise ConfigError("--host is empty; 127.0.0.1 is this machine, 0.0.0.0 all its addresses")
    given = read(path) if path else Config()
    if gpus:
        given = on_fleet(given, gpus)
    address: dict[str, Any] = {"host": host, "port": port}
    changed = {key: value for key, value in address.items() if value is not None}
    given = replace(given, gateway=replace(given.gateway, **changed))
    if speed is not None:
        given = replace(given, emulated=replace(given.emulated, speed=speed))
    named = policy or (given.policy[0] if given.policy else DEFAULT_POLICY)
    return Order(given, named, emulate, keep_engines, seed)
