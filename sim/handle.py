"""A compiled world by its address, so that a kernel call need not unpack a hundred arrays.

Numba takes half a microsecond to unpack each array of an argument, which for a whole `World` is
longer than most calls last. `keep` unpacks it once and stores the result; `world_at` loads it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from modelium.sim.books import World
from modelium.sim.build import make_world
from modelium.sim.jit import kernel
from modelium.sim.run import SimInput
from modelium.traces import Trace
from modelium.traces.trace import Labels

WORDS = 1024
"""Room for an unpacked world, in words of 8 bytes."""


def _none(*_: object) -> Any:
    raise AssertionError("there are no models")


def _type_of_worlds() -> Any:
    """The one type that all worlds have, as numba names it."""
    none = np.zeros(0)
    trace = Trace(
        none, Labels(none.astype(np.int32), ()), none.astype(np.int32), none.astype(np.int32)
    )
    nothing = SimInput([], [], [], engines=_none, work=_none)
    return typeof(make_world(nothing, trace, {}, {}))


_WORLD = _type_of_worlds()
_LAYOUT = f"world_{zlib.crc32(str(_WORLD).encode()):08x}"


def keep(w: World) -> NDArray[Any]:
    """Unpack `w` for `world_at`; the caller must hold on to both.

    The field of the result is called after the layout, which so becomes a part of its type:
    kernels that are cached for another layout are never taken for this one.
    """
    if typeof(w) != _WORLD:
        raise TypeError("a world's arrays must be contiguous, writable and of their usual types")
    handle = np.zeros(WORDS, np.dtype([(_LAYOUT, np.int64)]))
    _keep(w, handle)
    return handle


@intrinsic
def world_at(context: Any, handle: Any) -> Any:
    """The world that `handle` keeps."""

    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(context, builder, _WORLD, _place(context, builder, signature, arguments))

    return _WORLD(handle), load


@intrinsic
def _store(context: Any, handle: Any, w: Any) -> Any:
    def store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        if context.get_abi_sizeof(place.type.pointee) > WORDS * 8:
            raise ValueError(f"a world takes more than {WORDS} words")
        _save(builder, _WORLD, arguments[1], place)
        return context.get_dummy_value()

    return types.void(handle, w), store


@kernel
def _keep(w, handle):
    _store(handle, w)


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Where the handle keeps its world."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(array.data, context.get_value_type(_WORLD).as_pointer())


def _load(context: Any, builder: Any, kind: Any, place: Any) -> Any:
    """Load a tuple field by field: LLVM is slow with aggregates of a thousand words."""
    if not isinstance(kind, types.BaseTuple):
        return builder.load(place)
    fields = [
        _load(context, builder, field, cgutils.gep_inbounds(builder, place, 0, k))
        for k, field in enumerate(kind)
    ]
    return context.make_tuple(builder, kind, fields)


def _save(builder: Any, kind: Any, value: Any, place: Any) -> None:
    if not isinstance(kind, types.BaseTuple):
        builder.store(value, place)
        return
    for k, field in enumerate(kind):
        part = cgutils.gep_inbounds(builder, place, 0, k)
        _save(builder, field, builder.extract_value(value, k), part)
