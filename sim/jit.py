"""How kernels are compiled: once per machine, without reference counts, helpers inlined.

Kernels only see arrays that their callers hold. So numba's counting of references to them, an
atomic operation for each array and call, is left out: small steps are four times as fast. A kernel
must therefore not create arrays. None uses fastmath: results are the same on all machines.

Numba compiles a kernel again when its own file has changed, but what a kernel calls from other
files is compiled into it. So the stamp of each cached kernel covers the sources of all of them:
no other version's code is ever run, be it after an edit or an upgrade in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}


_SHARED = ("books.py", "generate_state.py", "jit.py")
"""What kernels take constants, layouts and options from, beside other kernels' files."""


def sources(folder: Path) -> str:
    """A digest of everything in `folder` that ends up in compiled kernels."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        if path.name in _SHARED or b"modelium.sim.jit" in text:
            digest.update(text)
    return digest.hexdigest()


_SOURCES = sources(Path(__file__).parent)


def kernel(function: _F) -> _F:
    """Compile a function that others call."""
    return cast(_F, _stamped(njit(**_OPTIONS)(function)))


def inlined(function: _F) -> _F:
    """Compile a helper into its callers: wide tuples of arrays are not copied for the call."""
    return cast(_F, _stamped(njit(forceinline=True, **_OPTIONS)(function)))


def _stamped(dispatcher: Any) -> Any:
    """Let the cache of a kernel hold for these sources only."""
    file = getattr(dispatcher._cache, "_cache_file", None)
    if file is not None:  # None where numba is told not to compile
        file._source_stamp = (file._source_stamp, _SOURCES)
    return dispatcher
