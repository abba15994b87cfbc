"""One executor per live folder: whoever holds its lock may touch what is in it.

    with locked(folder):
        ...             # journal, engines, logs are ours

The lock belongs to the open file, so the system takes it back however the process ends, and at
once. Engines do not inherit it: Python closes it in every program that it starts (PEP 446).
Source: flock(2). On file systems of several machines it depends on their server whether others see
it; the journal needs a local disk anyway (sqlite.org/wal.html).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelium.errors import ConfigError

FILE = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only executor of `folder`, which is made if it is not there, until the body ends.

    Raises ConfigError if another one is, with its process id, or if no lock can be had.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}{_WAY_OUT}") from None
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(_refusal(folder, error)) from None
        os.ftruncate(held, 0)
        os.write(held, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(held)


_WAY_OUT = "; choose another place by live: {folder: ...}"


def _refusal(folder: Path, error: OSError) -> str:
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        why = f"{folder}: its file system has no locks ({error.strerror})"
        return f"{why}; choose a folder on a local disk by live: {{folder: ...}}"
    holder = (folder / FILE).read_text(encoding="utf-8", errors="replace").strip()
    who = f"process {holder}" if holder else "another process"
    return (
        f"{folder.absolute()} is in use by a Modelium that runs, {who}."
        " End it first, or choose another folder by live: {folder: ...}"
    )
