"""How kernels are compiled: once per machine, without reference counts, helpers inlined.

Kernels only see arrays that their callers hold. So numba's counting of references to them, an
atomic operation for each array and call, is left out: small steps are four times as fast. A kernel
must therefore not create arrays. None uses fastmath: results are the same on all machines.

Numba compiles a kernel again when its own file has changed, but what a kernel calls from other
files is compiled into it. So the stamp of each cached kernel covers the sources of all of them:
no other version's code is ever run, be it after an edit or an upgrade in place.

To import numba takes longer than most simulations. It is put off until something has to be
compiled; what the control side calls (`entry`) is kept as machine code that runs without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, TypeVar, cast

from modelium.sim.jit.native import Native, load

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}


def sources(*folders: Path) -> str:
    """A digest of all files in folders whose code ends up in compiled kernels."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


_HERE = Path(__file__).parent
_SOURCES = sources(_HERE, _HERE.with_name("kernel"))
_READERS: dict[Callable[..., Any], Callable[[], Any]] = {}
"""Functions of an address, and what makes an example of that which they read there."""


def kernel(function: _F) -> _F:
    """Compile a function that others call."""
    return cast(_F, Kernel(function, _OPTIONS))


def inlined(function: _F) -> _F:
    """Compile a helper into its callers: wide tuples of arrays are not copied for the call."""
    return cast(_F, Kernel(function, {"forceinline": True, **_OPTIONS}))


def reader(example: Callable[[], Any]) -> Callable[[_F], _F]:
    """Compile a function of an address into one that reads a tuple of arrays there.

    All tuples that it reads have the types of `example()`.
    """

    def registered(function: _F) -> _F:
        _READERS[function] = example
        return function

    return registered


def entry(function: Callable[..., Any]) -> Entry:
    """Compile a function of a world's address and other integers, to be called from Python."""
    return Entry(function)


class Kernel:
    """A function that numba compiles once it is called, or called by one that is."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        update_wrapper(self, function)
        self.py_func, self._options = function, options

    @cached_property
    def dispatcher(self) -> Any:
        """What numba makes of it."""
        from modelium.sim.jit.compiler import dispatcher

        return dispatcher(self.py_func, self._options, _SOURCES, _READERS)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes it for where another kernel names it."""
        return self.dispatcher._numba_type_

    def __call__(self, *given: Any) -> Any:
        return self.dispatcher(*given)


class Entry(Kernel):
    """A kernel of integers that gives one, or nothing; once it is compiled, numba is not needed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, _OPTIONS)

    @cached_property
    def _native(self) -> Native:
        name = f"{self.py_func.__module__.rpartition('.')[2]}.{self.py_func.__name__}"
        count = self.py_func.__code__.co_argcount
        return load(name, _SOURCES, count, self._assembly)

    def _assembly(self) -> tuple[str, str]:
        from modelium.sim.jit.compiler import assembly

        return assembly(self.py_func, _OPTIONS, _READERS)

    def __call__(self, *given: int) -> int:
        return self._native(*given)

    def at(self, world: int) -> Callable[..., int]:
        """The kernel for the world of this address, for a caller that calls it often."""
        return self._native.given(world)
