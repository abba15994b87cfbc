"""Machine code that is kept in files: compiled once, loaded in a moment, by LLVM alone."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llvmlite import binding as llvm

_INT64, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class Native:
    """A function of 64-bit integers that gives an integer, a truth value or nothing (0)."""

    def __init__(self, code: bytes, symbol: str, count: int) -> None:
        """`code`: an object file in which `symbol` takes `count` integers as numba passes them."""
        self._symbol = symbol
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        # Numba's order: where the result goes, where an exception goes, then what is given.
        shape = ctypes.CFUNCTYPE(ctypes.c_int32, _ADDRESS, _ADDRESS, *[_INT64] * count)
        self._call = shape(self._engine.get_function_address(symbol))

    def __call__(self, *given: int) -> int:
        return self.given(*given)()

    def given(self, *first: int) -> Callable[..., int]:
        """The function of what follows `first`, in half the time a call; for one thread only.

        It holds on to all that it runs in: this object and its engine.
        """
        result, raised = _INT64(0), _ADDRESS()
        call = partial(self._call, ctypes.addressof(result), ctypes.addressof(raised), *first)

        def called(*rest: int) -> int:
            if call(*rest):
                why = f"{self._symbol}, {raised.value}"
                raise RuntimeError(f"a compiled kernel failed ({why}): a fault of Modelium")
            return result.value

        return called


def load(name: str, stamp: str, count: int, compiled: Callable[[], tuple[str, str]]) -> Native:
    """What is kept under `name` for sources with this stamp, or else what `compiled` gives.

    `compiled` gives LLVM's text and the function's name in it. Where nothing can be written, it is
    asked each time.
    """
    path = folder() / f"{name}.{_here()}.o"
    with contextlib.suppress(OSError, ValueError):
        about, code = path.read_bytes().split(b"\n", 1)
        kept, digest, symbol = about.decode().split(" ")
        if kept == stamp and digest == hashlib.sha256(code).hexdigest():
            return Native(code, symbol, count)
    text, symbol = compiled()
    code = _target().emit_object(llvm.parse_assembly(text))
    about = f"{stamp} {hashlib.sha256(code).hexdigest()} {symbol}\n".encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(about + code)
        part.replace(path)  # whole or not at all
    return Native(code, symbol, count)


def folder() -> Path:
    """Where code is kept: beside the sources, or in the user's cache if that cannot be written."""
    beside = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__")
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return Path.home() / ".cache" / "modelium"


def _target() -> llvm.TargetMachine:
    """This processor, with all that it can do."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
    )


def _here() -> str:
    """A name for this processor and this place of the sources."""
    features = llvm.get_host_cpu_features().flatten()
    told = f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()} {features} {__file__}"
    return hashlib.sha256(told.encode()).hexdigest()[:8]
