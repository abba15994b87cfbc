"""Victims kept in order between decisions are those that a look at every copy finds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from modelium.core import Gpu, Model, Node
from modelium.policies.toolkit.on_demand import Evict, OnDemand, last_use
from modelium.sim import SimInput, simulate
from modelium.sim.spec import Infer
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import GIB

MODELS = 12


def _trace(seed: int, rate_per_s: float) -> Trace:
    rng = np.random.default_rng(seed)
    n = 1500
    codes = np.minimum(rng.geometric(0.2, n) - 1, MODELS - 1).astype(np.int32)
    tokens = np.ones(n, np.int32)
    names = tuple(f"m{k:02d}" for k in range(MODELS))
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_per_s, n))
    return Trace(arrival_s, Labels(codes, names), tokens, tokens)


def _decisions(trace: Trace, rule: Evict, sleep_level: Literal[0, 1]) -> pa.Table:
    given = SimInput(
        nodes=[Node("n", 100 * GIB)],
        gpus=[Gpu(f"g{k}", "n", 8 * GIB, "a10") for k in range(3)],
        models=[
            Model(name, (2 + k % 4) * GIB, asleep_bytes=GIB // 2, gpus=1 + (k % 5 == 4))
            for k, name in enumerate(trace.model.names)
        ],
        engines=lambda model, kind: Infer(((0.5,),)),
        work=lambda model, kind, prompt, output: 0.5,
    )
    return simulate(given, OnDemand(evict=rule, sleep_level=sleep_level), trace).decisions


@pytest.mark.parametrize("sleep_level", [0, 1])
@pytest.mark.parametrize("rate_per_s", [0.05, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_copies_leave(seed: int, rate_per_s: float, sleep_level: Literal[0, 1]) -> None:
    trace = _trace(seed, rate_per_s)
    kept = _decisions(trace, last_use, sleep_level)
    assert len(kept) > 100
    assert kept.equals(_decisions(trace, lambda state, copy: copy.last_used_s, sleep_level))
