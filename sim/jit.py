"""How kernels are compiled: once per machine, without reference counts, helpers inlined.

Kernels only see arrays that their callers hold. So numba's counting of references to them, an
atomic operation for each array and call, is left out: small steps are four times as fast. A kernel
must therefore not create arrays. None uses fastmath: results are the same on all machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}


def kernel(function: _F) -> _F:
    """Compile a function that others call."""
    return cast(_F, njit(**_OPTIONS)(function))


def inlined(function: _F) -> _F:
    """Compile a helper into its callers: wide tuples of arrays are not copied for the call."""
    return cast(_F, njit(forceinline=True, **_OPTIONS)(function))
