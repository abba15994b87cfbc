"""A compiled world by its address, so that a kernel call need not pass a hundred arrays.

`keep` writes down where each array of a world is, in the order and form in which compiled code
holds arrays; `world_at` is the world that begins at such an address.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.sim.inputs import SimInput
from modelium.sim.jit.decorators import reader
from modelium.sim.kernel.arrays import World
from modelium.sim.kernel.build import make_world
from modelium.traces import Trace
from modelium.traces.trace import Labels


def blank() -> World:
    """A world of no requests, models and GPUs."""
    none = np.zeros(0)
    trace = Trace(
        none, Labels(none.astype(np.int32), ()), none.astype(np.int32), none.astype(np.int32)
    )
    nothing = SimInput([], [], [], engines=_none, work=_none)
    return make_world(nothing, trace, {}, {})


def _none(*_: object) -> Any:
    raise AssertionError("there are no models")


def layout(w: World) -> tuple[tuple[str, int], ...]:
    """What compiled code takes for granted: the element type and dimensions of each array."""
    return tuple((str(array.dtype), array.ndim) for array in _arrays(w))


def keep(w: World) -> NDArray[np.int64]:
    """Unpack `w`; the caller must hold on to both while kernels use the result's address.

    Raises TypeError for arrays that kernels are not compiled for.
    """
    if layout(w) != LAYOUT or not all(
        array.flags.c_contiguous and array.flags.writeable for array in _arrays(w)
    ):
        raise TypeError("a world's arrays must be contiguous, writable and of their usual types")
    words = list[int]()
    for array in _arrays(w):
        # Numba's: who owns it and its parent (nobody), then size, place, shape and strides.
        words += (0, 0, array.size, array.itemsize, array.ctypes.data)
        words += (*array.shape, *array.strides)
    return np.array(words, np.int64)


@reader(blank)
def world_at(address: int) -> World:
    """The world that `keep` put at this address, in compiled code."""
    raise NotImplementedError("only kernels can read a world by its address")


def _arrays(some: tuple[Any, ...]) -> Iterator[NDArray[Any]]:
    for one in some:
        if isinstance(one, tuple):
            yield from _arrays(one)
        else:
            yield one


LAYOUT = layout(blank())
