"""Finding and reading a configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.config.validation import problems
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.config.schema import Config

VARIABLE = "MODELIUM_CONFIG"


def search() -> list[Path]:
    """Where a file is looked for when none is named, best first."""
    named = os.environ.get(VARIABLE)
    usual = [
        Path("modelium.yaml"),
        Path.home() / ".modelium" / "modelium.yaml",
        Path("/etc/modelium/modelium.yaml"),
    ]
    return ([Path(named)] if named else []) + usual


def find(given: Path | None = None) -> Path | None:
    """Return the file to use, or None if there is none.

    Raises ConfigError if the file that `given` or $MODELIUM_CONFIG names does not exist.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        return next((path for path in search() if path.is_file()), None)
    if not named.is_file():
        by = "" if given else f" (named by ${VARIABLE})"
        if named.is_dir():
            raise ConfigError(f"{named}: a folder{by}; expected a file such as modelium.yaml")
        raise ConfigError(f"{named}: no such file{by}. `modelium init` writes one")
    return named


def read(path: Path) -> Config:
    """Read and check a file. Raises ConfigError with the first thing that is wrong."""
    config, problems = examine(path)
    if config is None:
        more = f" ({len(problems) - 1} more: modelium check)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)
    return config


def examine(path: Path) -> tuple[Config | None, list[str]]:
    """Read a file; return it, or None and every problem as a line with the key's path."""
    from pydantic import ValidationError

    from modelium.config.schema import Config

    try:
        return Config.of(_mapping(path)), []
    except ConfigError as error:
        return None, [str(error)]
    except ValidationError as error:
        return None, problems(path, error)


def _mapping(path: Path) -> dict[str, Any]:
    from modelium.config.yaml import load

    try:
        given = load(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected sections such as 'cluster:', found {given!r:.40}")
    return given
