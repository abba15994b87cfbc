"""Files and folders that only their owner may read: the journal, logs, and what engines are told.

Names of organizations and models, and what engines write of their requests, are nobody else's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, or take it from the others if it is there.

    A folder that also serves something else (the working folder or one above it, a place for
    temporary files) stays as it is, and so does another user's. Raises OSError.
    """
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    found = path.stat()
    shared = found.st_mode & stat.S_ISVTX or Path.cwd().is_relative_to(path.resolve())
    if not shared and found.st_uid == os.getuid():
        path.chmod(FOLDER_MODE)


def private_file(path: Path) -> None:
    """Make a file that only its owner may read, or take it from the others if it is there.

    Another user's stays as it is. Raises OSError.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
    keep_private(path)


def keep_private(path: Path) -> None:
    """Take a file from the others, if it is there."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.chmod(FILE_MODE)


def write_private(path: Path, text: str) -> None:
    """Write a text that only the file's owner may read. Raises OSError."""
    private_file(path)
    path.write_text(text, encoding="utf-8")
