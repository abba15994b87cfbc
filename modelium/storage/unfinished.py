"""Is a folder of model files still being written? Asks for names, sizes and headers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = (".part", ".tmp", ".incomplete", ".download", ".crdownload", ".partial", ".lock")
"""Endings of files that are being written."""
STILL_S = 2.0
"""Files that have not changed for so long are taken for whole."""
LOOK_S = 0.25
"""Until then, they are looked at this often."""


def unfinished(folder: Path) -> str:
    """Say why a folder looks as if it were still being written, or return ""."""
    for file in files_in(folder):
        if file.name.endswith(UNFINISHED):
            return f"{file.name} is being written"
        if file.suffix == ".safetensors" and (why := _cut(file)):
            return f"{file.name} {why}"
    return ""


def files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder and of those in it, links as well."""
    # `walk`, unlike `rglob`, goes on when a folder is taken away meanwhile.
    inside = (Path(at, name) for at, folders, names in os.walk(folder) for name in folders + names)
    # Those of `path`, unlike those of `Path`, never raise.
    return (file for file in inside if os.path.islink(file) or os.path.isfile(file))


def _cut(file: Path) -> str:
    """A safetensors file says in its header how long it is."""
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if size < 8 or length > size - 8:
                return "is not whole yet"
            header = json.loads(data.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return ""  # whole, but wrong: the analysis says how
    return "is not whole yet" if size < 8 + length + max(ends, default=0) else ""
