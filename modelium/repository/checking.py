"""Is a folder of model files whole, and is it safe to serve?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from modelium.analyze import ModelFiles, analyze
from modelium.errors import ModeliumError
from modelium.storage.unfinished import files_in

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""A name, or "organization/name"."""
MOST_LETTERS = 200
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
    for file in files_in(folder):
        # As of `path`, since that of `Path` raises where a link leads to itself.
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(folder.resolve()):
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
    text = code.read_text(encoding="utf-8", errors="replace")
    files = [file for file in files_in(folder) if os.path.isfile(file)]  # links may lead nowhere
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


def listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file: what changes while a folder is being written."""
    found = []
    for file in files_in(folder):
        try:
            stat = file.lstat()
        except FileNotFoundError:
            continue
        found.append((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _pickles(folder: Path, found: ModelFiles) -> Iterator[Path]:
    if found.format == "torchscript":
        return iter(())
    return (file for file in files_in(folder) if file.suffix in PICKLES)
