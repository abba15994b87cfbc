"""Small worlds for the simulator, and the arithmetic of batch means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from modelium.control.costs import INSTANT, ConfiguredFacts, Stages
from modelium.core import Gpu, Limits, Model, Node, Policy, Slo
from modelium.policies.static import Static
from modelium.results.record import Run, floats, labels
from modelium.sim import SimInput, simulate
from modelium.sim.spec import Engine, Infer, Settings
from modelium.traces import Trace
from modelium.traces.trace import Labels

sys.path.insert(0, str(Path(__file__).parent))  # the references in plain Python, by their names

Floats = NDArray[np.float64]
TOKEN_S = 1e-6
"""Seconds of service for a unit of work: service times are whole microseconds."""
SERVER = Infer(((0.0,),), per_token_s=TOKEN_S)
"""Serves one request at a time for as long as its work says."""
BATCHES = 20


class Served(NamedTuple):
    """The columns of a run, in order of arrival."""

    run: Run
    arrival_s: Floats
    service_s: Floats
    first_s: Floats
    finish_s: Floats
    outcome: NDArray[np.str_]
    cold: NDArray[np.str_]

    @property
    def wait_s(self) -> Floats:
        """Time in the system, less the service time."""
        return self.finish_s - self.arrival_s - self.service_s

    @property
    def sojourn_s(self) -> Floats:
        """Time in the system."""
        return self.finish_s - self.arrival_s


def names(run: Run, column: str) -> NDArray[np.str_]:
    """A column of names of the requests, "" where there is none."""
    codes, table = labels(run.requests, column)
    return np.array([*table, ""])[codes]


def columns(run: Run) -> Served:
    """The columns of `run`."""
    work = floats(run.requests, "prompt_tokens") * TOKEN_S
    times = [floats(run.requests, c) for c in ("arrival_s", "first_token_s", "finish_s")]
    return Served(run, times[0], work, *times[1:], names(run, "outcome"), names(run, "cold"))


def trace(
    arrival_s: ArrayLike,
    models: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    *,
    service_s: ArrayLike = 0.0,
    prompt: ArrayLike | None = None,
    output: ArrayLike = 1,
    slo_class: Labels | None = None,
) -> Trace:
    """Requests for models m000, m001, ... by number (None: all for m000)."""
    arrivals = np.asarray(arrival_s, float)
    n = len(arrivals)
    codes = np.zeros(n, np.int32) if models is None else np.asarray(models, np.int32)
    known = tuple(f"m{k:03}" for k in range(int(codes.max()) + 1))
    work = np.rint(np.asarray(service_s, float) / TOKEN_S) if prompt is None else prompt
    tokens = [np.broadcast_to(np.asarray(x), n).astype(np.int32) for x in (work, output)]
    return Trace(arrivals, Labels(codes, known), *tokens, slo_class=slo_class, source="test")


def play(
    asked: Trace,
    policy: Policy | None = None,
    engine: Engine = SERVER,
    *,
    gpu_bytes: Sequence[int] = (1,),
    stages: Stages = INSTANT,
    facts: ConfiguredFacts | None = None,
    settings: Settings | None = None,
    slo_classes: Mapping[str, Slo] | None = None,
    seed: int = 0,
    **model: Any,
) -> Served:
    """Serve `asked` on GPUs g0, g1, ... of one node; models weigh 1 byte.

    Without a policy, each model has a copy on the GPU of its number.
    """
    given = SimInput(
        nodes=[Node("n0", 1 << 20)],
        gpus=[Gpu(f"g{k}", "n0", size) for k, size in enumerate(gpu_bytes)],
        models=[Model(name, **{"weights_bytes": 1, **model}) for name in asked.model.names],
        engines=lambda model, kind: engine,
        work=lambda model, kind, prompt, output: 1.0,
        facts=facts or ConfiguredFacts(default_stages=stages),
        settings=settings or Settings(limits=Limits(loads_at_once_per_gpu=1000), drain_s=1e6),
        slo_classes=slo_classes or {},
    )
    own = Static({name: [(f"g{k}",)] for k, name in enumerate(asked.model.names)})
    return columns(simulate(given, policy or own, asked, seed=seed))


def near(values: ArrayLike, exact: float, *, warm: float = 0.02) -> str:
    """Say how far the mean of `values` is from `exact`, if over four standard errors.

    The error comes from the means of 20 consecutive batches; the first `warm` share is left out.
    """
    kept = np.asarray(values, float)[int(len(np.asarray(values)) * warm) :]
    assert not np.isnan(kept).any()
    means = np.array([batch.mean() for batch in np.array_split(kept, BATCHES)])
    error = float(means.std(ddof=1)) / BATCHES**0.5
    off = abs(float(kept.mean()) - exact)
    assert error < 0.2 * abs(exact), "too noisy to prove anything"
    return "" if off <= 4 * error else f"{kept.mean():.6f}, not {exact:.6f}: {off / error:.1f} SE"


def poisson(rate_per_s: float, n: int, seed: int = 1) -> Floats:
    """Arrival times."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, n))


def exponential(n: int, mean_s: float = 1.0) -> Floats:
    """Service times."""
    return np.random.default_rng(2).exponential(mean_s, n)


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """`play` and what goes with it."""
    tools: list[Callable[..., Any]] = [play, trace, near, poisson, exponential, names, columns]
    return SimpleNamespace(
        **{tool.__name__: tool for tool in tools}, SERVER=SERVER, TOKEN_S=TOKEN_S, Served=Served
    )
