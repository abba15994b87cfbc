"""Reading small files that a stranger wrote: bounded, checked, and never executed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelium.errors import ProfileError

MOST_JSON_BYTES = 100_000_000
"""No configuration, index or header is larger; safetensors' own readers stop at the same size."""
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Weights:
    """What the weight files of a model say of themselves."""

    format: str
    """safetensors, pytorch (a pickle), onnx, torchscript, a Triton backend's name, or none."""
    files: int
    size_bytes: int
    parameters: int | None = None
    dtypes: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Bytes by data type, largest first."""
    notes: tuple[str, ...] = ()
    """What could not be found out, and what a reader should know."""


def load_json(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`; raises ProfileError that says `what` was read."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ProfileError(f"{what} is nested too deeply to be real") from None
    except ValueError as error:
        raise ProfileError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProfileError(f"{what} holds a {type(value).__name__}, expected a JSON object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ProfileError."""
    if size_of(path) > MOST_JSON_BYTES:
        raise ProfileError(f"{path} has {size_of(path)} bytes, too many for a JSON file")
    return load_json(start_of(path, MOST_JSON_BYTES), str(path))


def size_of(path: Path) -> int:
    """Bytes of a regular file; raises ProfileError."""
    if not path.is_file():
        raise ProfileError(f"{path} is not a file")
    return path.stat().st_size


def start_of(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, or all it has."""
    with path.open("rb") as file:
        return file.read(count)


def check_weights(path: Path) -> int:
    """Bytes of a weight file; raises ProfileError if it is empty or only points to the weights."""
    size = size_of(path)
    if size == 0:
        raise ProfileError(f"{path} is empty")
    if size < 1024 and start_of(path, len(_LFS_POINTER)) == _LFS_POINTER:
        raise ProfileError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    return size


def check_names(names: Iterable[str], named_by: Path) -> list[Path]:
    """Where the files called `names` lie or would lie: beside `named_by`.

    Raises ProfileError for names with a folder in them: a model's files lie in its own folder.
    """
    wanted = sorted(set(names))
    for name in wanted:
        if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
            raise ProfileError(
                f"{named_by} names the file {name!r}, expected one in its own folder"
            )
    return [named_by.parent / name for name in wanted]


def any_beside(names: Iterable[str], named_by: Path) -> bool:
    """Whether any of the files called `names` is there; raises ProfileError as `check_names`."""
    return any(_is_file(path) for path in check_names(names, named_by))


def check_beside(names: Iterable[str], named_by: Path) -> list[Path]:
    """The files called `names` beside `named_by`; raises ProfileError unless all are there."""
    paths = check_names(names, named_by)
    missing = [repr(path.name) for path in paths if not _is_file(path)]
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ProfileError(
            f"{named_by} names {len(paths)} files, of which {len(missing)} are missing: {some}"
        )
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
