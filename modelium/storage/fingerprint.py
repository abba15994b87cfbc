"""Which files a model has, told without reading them: `fingerprint(path)` asks only for their stat.

    before = fingerprint(folder)
    ...
    fingerprint(folder).difference(before)      # "model.safetensors was replaced", or ""

A file is the same while its size, its modification time and its inode are. Whoever writes into a
file changes the first two; whoever puts another file in its place (`mv`, `rsync`, a link that is
turned to another target) changes the last, also where the copy keeps the time of its original.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelium.units import listed

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf", ".plan", ".engine", ".pb")
"""Endings of files that hold weights."""
SERVED_FROM = (*WEIGHTS, ".json", ".txt", ".py", ".model", ".pbtxt", ".jinja", ".tiktoken", ".data")
"""Endings of files that a model is served from; what it writes beside them, as logs, is its own."""


@dataclass(frozen=True, slots=True, order=True)
class FileIdentity:
    """One file at one moment; of a link, what it leads to."""

    name: str
    """Relative to the model's folder, with slashes."""
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class FilesIdentity:
    """All files of a model at one moment, by name; none if there is nothing at its path."""

    files: tuple[FileIdentity, ...] = ()

    def difference(self, earlier: FilesIdentity) -> str:
        """What has changed since `earlier`, in words; "" if nothing has."""
        if self == earlier:
            return ""
        now = {one.name: one for one in self.files}
        before = {one.name: one for one in earlier.files}
        said = []
        for name in sorted(now.keys() | before.keys()):
            new, old = now.get(name), before.get(name)
            if new is None:
                said.append(f"{name} is gone")
            elif old is None:
                said.append(f"{name} is new")
            elif new != old:
                said.append(f"{name} was {'changed' if new.inode == old.inode else 'replaced'}")
        return listed(said)

    def as_list(self) -> list[list[Any]]:
        """Plain values for JSON."""
        return [[one.name, one.size_bytes, one.mtime_ns, one.inode] for one in self.files]

    @classmethod
    def from_list(cls, given: Sequence[Sequence[Any]]) -> FilesIdentity:
        """Read back what `as_list` gave and JSON kept; earlier versions kept more files."""
        return cls(tuple(FileIdentity(*one) for one in given if _is_served_from(one[0])))


def fingerprint(path: Path) -> FilesIdentity:
    """The identity of the files of a model: a folder, or one file.

    What no engine reads is left out: hidden files, README and licence, logs. Links are followed,
    also to folders, but never to one that is being looked at already. What goes away meanwhile, or
    cannot be looked at (a link to itself, a folder of others), is not there.
    """
    if os.path.isdir(path):  # which, unlike `path.is_dir`, never raises
        return FilesIdentity(tuple(sorted(_files(path, "", ()))))
    found = _identity(path, path.name)
    return FilesIdentity((found,) if found else ())


def _files(
    folder: Path, prefix: str, within: tuple[tuple[int, int], ...]
) -> Iterator[FileIdentity]:
    """`within`: the folders on the way down, by device and inode."""
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except OSError:
        return
    if (me := (here.st_dev, here.st_ino)) in within:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/", (*within, me))
        elif found := _identity(Path(entry.path), f"{prefix}{entry.name}"):
            yield found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself
        return False


def _is_served_from(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.endswith(SERVED_FROM) and not last.lower().startswith(("license", "readme"))


def _identity(path: Path, name: str) -> FileIdentity | None:
    if not _is_served_from(name):
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return FileIdentity(name, found.st_size, found.st_mtime_ns, found.st_ino)
