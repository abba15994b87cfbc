"""Is a folder of model files whole, and is it safe to serve?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from modelium.analyze import ModelFiles, analyze
from modelium.errors import ModeliumError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""A name, or "organization/name"."""
MOST_LETTERS = 200
UNFINISHED = (".part", ".tmp", ".incomplete", ".download", ".crdownload", ".partial", ".lock")
"""Endings of files that are being written."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Endings of files that run code when they are loaded, unless they are TorchScript archives."""


class RepositoryError(ModeliumError):
    """A model cannot be taken in, found or removed."""


def check_name(name: str) -> str:
    """Return a name that is fit for clients and file systems. Raises RepositoryError."""
    fine = NAME.fullmatch(name) and len(name) <= MOST_LETTERS
    if not fine or any(part.strip(".") == "" for part in name.split("/")):
        raise RepositoryError(
            f"{name!r:.80} is no name for a model: letters, digits, '.', '_' and '-', not first a"
            " '.', with at most one '/' (organization/name)"
        )
    return name


def check_folder(folder: Path, *, allow_pickle: bool = False) -> ModelFiles:
    """Analyse a folder that is about to be taken in. Raises RepositoryError if it must not be.

    Refused are links that lead out of the folder, pickles unless allowed, and folders that hold no
    model that anybody could serve.
    """
    for file in _files(folder):
        if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
            raise RepositoryError(f"{file.relative_to(folder)} is a link that leads out of it")
    try:
        found = analyze(folder)
    except ModeliumError as error:
        if (python := _python(folder)) is None:
            raise RepositoryError(str(error)) from None
        found = python
    if not allow_pickle and (pickled := next(_pickles(folder, found), None)):
        raise RepositoryError(
            f"{pickled.name} is a pickle, which can run any code when it is loaded: convert it to"
            " safetensors, or set live: {allow_pickle: true} if you trust it"
        )
    if not found.files and not (folder / "model.py").is_file():
        raise RepositoryError("it has no weights (*.safetensors, *.onnx or *.pt) and no model.py")
    return found


def _python(folder: Path) -> ModelFiles | None:
    """A folder whose model.py is all that there is to know."""
    code = folder / "model.py"
    if not code.is_file():
        return None
    text, files = code.read_text(encoding="utf-8", errors="replace"), list(_files(folder))
    triton = "TritonPythonModel" in text
    return ModelFiles(
        path=str(folder),
        format="python",
        files=len(files),
        weights_bytes=sum(file.stat().st_size for file in files),
        dtypes={},
        parameters=None,
        architecture="",
        shape=None,
        runtime="triton" if triton else "ray",
        runtime_reason="its model.py is for " + ("Triton" if triton else "Ray Serve"),
        unknown=("parameters", "memory: give `weights` in the configuration"),
    )


def unfinished(folder: Path) -> str:
    """Say why a folder looks as if it were still being written, or return ""."""
    for file in _files(folder):
        if file.name.endswith(UNFINISHED):
            return f"{file.name} is being written"
        if file.suffix == ".safetensors" and (why := _cut(file)):
            return f"{file.name} {why}"
    return ""


def listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file: what changes while a folder is being written."""
    found = []
    for file in _files(folder):
        try:
            stat = file.lstat()
        except FileNotFoundError:
            continue
        found.append((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _files(folder: Path) -> Iterator[Path]:
    # `walk`, unlike `rglob`, goes on when a folder is taken away meanwhile.
    inside = (Path(at, name) for at, folders, names in os.walk(folder) for name in folders + names)
    return (file for file in inside if file.is_symlink() or file.is_file())


def _pickles(folder: Path, found: ModelFiles) -> Iterator[Path]:
    if found.format == "torchscript":
        return iter(())
    return (file for file in _files(folder) if file.suffix in PICKLES)


def _cut(file: Path) -> str:
    """A safetensors file says in its header how long it is."""
    import json

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
