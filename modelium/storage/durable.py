"""Small files that are replaced as a whole: whoever reads one finds the old text or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_durably(file: Path, text: str) -> None:
    """Replace a file at once; it is on the disk when this returns, whatever fails next.

    (On file systems that can sync folders: on others the disk may have the old one for a while.)
    Its owner alone can read it. Raises OSError, and the file is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{file.stem}-", dir=file.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(handle)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # it is replaced, which must not be told as a failure
            os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
