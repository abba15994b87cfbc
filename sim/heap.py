"""An indexed binary heap in arrays: which engine is due next.

Keys live in `due` (picoseconds, by engine); `order` holds the engines as a heap and `place` where
each engine stands in it. Ties go to the lower engine number, so that runs are reproducible.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.sim.jit import inlined

NEVER = np.iinfo(np.int64).max


class Heap(NamedTuple):
    """All engines are always in the heap; an idle one is due at NEVER."""

    due: NDArray[np.int64]
    order: NDArray[np.int64]
    place: NDArray[np.int64]


def make_heap(size: int) -> Heap:
    """A heap of `size` idle engines."""
    index = np.arange(size, dtype=np.int64)
    return Heap(np.full(size, NEVER, np.int64), index, index.copy())


@inlined
def _before(heap, a, b):
    return heap.due[a] < heap.due[b] or (heap.due[a] == heap.due[b] and a < b)


@inlined
def set_due(heap, engine, due):
    """Engine is due at `due` from now on."""
    if heap.due[engine] == due:
        return
    sooner = due < heap.due[engine]
    heap.due[engine] = due
    at = heap.place[engine]
    if sooner:
        _up(heap, engine, at)
    else:
        _down(heap, engine, at)


@inlined
def _up(heap, engine, at):
    while at > 0:
        parent = (at - 1) >> 1
        other = heap.order[parent]
        if not _before(heap, engine, other):
            break
        heap.order[at] = other
        heap.place[other] = at
        at = parent
    heap.order[at] = engine
    heap.place[engine] = at


@inlined
def _down(heap, engine, at):
    size = heap.order.shape[0]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(heap, heap.order[child + 1], heap.order[child]):
            child += 1
        other = heap.order[child]
        if not _before(heap, other, engine):
            break
        heap.order[at] = other
        heap.place[other] = at
        at = child
    heap.order[at] = engine
    heap.place[engine] = at
