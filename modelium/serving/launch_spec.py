"""What to serve, and how: the configuration, with the command line's words before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from modelium.config import Config, find, read
from modelium.config.access import exposed
from modelium.config.planning.hardware import on_fleet
from modelium.errors import ConfigError
from modelium.policies import DEFAULT_POLICY

Stamp = tuple[str, int, int, int]
"""How a file looks: its path, when it was changed, its size and number."""


def stamp(file: Path) -> Stamp | None:
    """How a file looks now; None if it is not there, as while it is being replaced."""
    try:
        found = file.stat()
    except OSError:
        return None
    return str(file), found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True)
class LaunchSpec:
    """What to serve, and how."""

    config: Config
    policy: str = DEFAULT_POLICY
    """As on the command line."""
    emulate: bool = False
    """Serve every model with an emulated engine."""
    keep_engines: bool = False
    """Leave the engines running at the end, for the next start to adopt."""
    seed: int = 0
    file: Path | None = None
    """Where the configuration was read; None if it was not."""
    read: Stamp | None = field(default=None, compare=False)
    """How that file looked before it was read."""
    watch_config: bool = False
    """Take up changes of that file as they are seen."""
    again: Callable[[], LaunchSpec] | None = field(default=None, compare=False)
    """Reads the file again, with the same words of the command line before it."""


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
    insecure: bool = False,
    watch_config: bool = False,
) -> LaunchSpec:
    """Read the configuration and let the command line's words go first. Raises ModeliumError."""
    path = find(config)
    if path is None and not emulate:
        raise ConfigError(
            "no configuration was found; `modelium init` writes one (or try --emulate --gpus"
            " 4xh100-80g with a configuration that names models)"
        )
    if host == "":
        raise ConfigError("--host is empty; 127.0.0.1 is this machine, 0.0.0.0 all its addresses")
    seen = stamp(path) if path else None
    given = read(path) if path else Config()
    if gpus:
        given = on_fleet(given, gpus)
    address: dict[str, Any] = {"host": host, "port": port, "insecure": insecure or None}
    changed = {key: value for key, value in address.items() if value is not None}
    given = replace(given, gateway=replace(given.gateway, **changed))
    if why := exposed(given):
        raise ConfigError(why)
    if speed is not None:
        given = replace(given, emulated=replace(given.emulated, speed=speed))
    named = policy or (given.policy[0] if given.policy else DEFAULT_POLICY)
    again = partial(
        order, path, policy, gpus=gpus, host=host, port=port, emulate=emulate, speed=speed,
        keep_engines=keep_engines, seed=seed, insecure=insecure, watch_config=watch_config,
    )  # fmt: skip
    return LaunchSpec(
        given,
        named,
        emulate,
        keep_engines,
        seed,
        path,
        seen,
        watch_config,
        again if path else None,
    )
