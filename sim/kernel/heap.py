"""An indexed binary heap in arrays: which engine is due next.

Keys live in `due` (picoseconds, by engine); the first `size` of `order` hold the engines that are
due at all as a heap, and `place` says where each of them stands in it. Most engines are idle: they
are left out, so that few steps lead to the top. Ties go to the lower engine number, so that runs
are reproducible.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.sim.jit.decorators import inlined
from modelium.sim.jit.hints import index

NEVER = np.iinfo(np.int64).max


class Heap(NamedTuple):
    """`order[0]` is due next; where all are idle, it is one that is due at NEVER."""

    due: NDArray[np.int64]
    order: NDArray[np.int64]
    place: NDArray[np.int64]
    size: NDArray[np.int64]  # [1]


def make_heap(engines: int) -> Heap:
    """A heap of `engines` idle engines."""
    none = np.zeros(engines, np.int64)
    return Heap(np.full(engines, NEVER, np.int64), none, none.copy(), np.zeros(1, np.int64))


@inlined
def set_due(heap, engine, due):
    """Engine is due at `due` from now on."""
    before = heap.due[engine]
    if before == due:
        return
    heap.due[engine] = due
    at = index(heap.place[engine])
    if before == NEVER:
        at = index(heap.size[0])
        heap.size[0] += 1
    elif due == NEVER:
        heap.size[0] -= 1
        if at == heap.size[0]:
            return
        engine = index(heap.order[index(heap.size[0])])  # the last takes its place
    _sift(heap, engine, at)


@inlined
def _sift(heap, engine, at):
    """Put an engine where it belongs, up or down from a place that is free."""
    due, free = heap.due[engine], at
    while at > 0:
        parent = (at - 1) >> 1
        other = index(heap.order[parent])
        if not _before(heap, engine, due, other):
            break
        heap.order[at] = other
        heap.place[other] = at
        at = parent
    if at == free:
        at = _down(heap, engine, due, at)
    heap.order[at] = engine
    heap.place[engine] = at


@inlined
def _down(heap, engine, due, at):
    size = heap.size[0]
    while True:
        child = 2 * at + 1
        if child >= size:
            return at
        other = index(heap.order[child])
        if child + 1 < size:
            second = index(heap.order[child + 1])
            if _before(heap, second, heap.due[second], other):
                child, other = child + 1, second
        if _before(heap, engine, due, other):
            return at
        heap.order[at] = other
        heap.place[other] = at
        at = child


@inlined
def _before(heap, engine, due, other):
    other_due = heap.due[other]
    return due < other_due or (due == other_due and engine < other)
