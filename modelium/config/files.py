"""Finding and reading a configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

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
        return None, lines(path, error)


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


def lines(path: Path, error: ValidationError) -> list[str]:
    """Every problem of a file as a line with the key's path."""
    return [f"{path}: {_problem(dict(p))}" for p in error.errors(include_url=False)]


def _problem(problem: dict[str, Any]) -> str:
    context = problem.get("ctx", {})
    where = key_path([*problem["loc"], *([context["key"]] if "key" in context else [])])
    what = context.get("problem") or _reworded(problem)
    return f"{where}: {what}" if where else str(what)


def _reworded(problem: dict[str, Any]) -> str:
    given = problem["input"]
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "dataclass_type":
        return f"{given!r:.40} is not a section of keys and values"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return str(message)
    return f"{given!r:.40}, expected {message}"


def key_path(where: list[str | int]) -> str:
    """Write `["cluster", "gpus", 1, "kind"]` as `cluster.gpus[1].kind`."""
    keys = [part for part in where if not str(part).startswith("<")]  # not the tag of a union
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys]
    return "".join(parts).removeprefix(".")
