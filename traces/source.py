"""Opening trace files: plain or gzip, told apart by their first bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from modelium.errors import TraceError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"


@contextmanager
def opened(path: Path, at_once_bytes: int = 1 << 20) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacked if it is gzip, so many of them at a time.

    What goes wrong inside the block with the file itself is raised as TraceError.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic == GZIP:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield io.BufferedReader(unpacked, at_once_bytes)
            else:
                yield raw
    except EOFError as error:
        raise TraceError(
            f"{path} is cut short: its gzip stream ends before its end. Copy it again."
        ) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path} is damaged gzip ({error}). Copy it again.") from error
    except FileNotFoundError as error:
        raise TraceError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise TraceError(f"{path} is a folder, expected a trace file") from error
    except PermissionError as error:
        raise TraceError(f"{path} may not be read by this user") from error


@contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """Open a file for reading text, unpacked; what is not UTF-8 becomes U+FFFD."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
        try:
            yield text
        finally:
            text.detach()  # closing the file is for `opened` to do


def head(path: Path, n: int = 65536) -> bytes:
    """The first `n` bytes, unpacked. Raises TraceError where there are none."""
    with opened(path, n) as file:
        start = file.read(n)
    if not start:
        raise TraceError(f"{path} is empty")
    return start
