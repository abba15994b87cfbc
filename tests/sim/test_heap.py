"""The heap of engines: always the one that is due next, whatever was set before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelium.sim.jit.decorators import kernel
from modelium.sim.kernel.heap import NEVER, make_heap, set_due

ENGINES = 9


@kernel
def _set(heap, engine, due):
    set_due(heap, engine, due)


@given(
    st.lists(st.tuples(st.integers(0, ENGINES - 1), st.one_of(st.integers(0, 5), st.just(NEVER))))
)
def test_the_next_engine_is_the_least_of_all(changes: list[tuple[int, int]]) -> None:
    heap, plain = make_heap(ENGINES), [NEVER] * ENGINES
    for engine, due in changes:
        _set(heap, np.int64(engine), np.int64(due))
        plain[engine] = due
        first = int(heap.order[0])
        assert heap.due.tolist() == plain
        if min(plain) == NEVER:
            assert plain[first] == NEVER
        else:
            assert first == plain.index(min(plain))  # ties: the lower number
        assert int(heap.size[0]) == sum(at < NEVER for at in plain)
