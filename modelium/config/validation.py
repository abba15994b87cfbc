"""Pydantic's errors in plain words, with keys as in the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


def problems(path: Path, error: ValidationError) -> list[str]:
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
