"""Placement and batching against closed forms: replicas or pipeline, processor sharing, batches."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from modelium.core import Slo
from modelium.errors import ConfigError
from modelium.policies.static import Static
from modelium.sim.spec import Generate, Infer, StepTime
from modelium.traces.trace import Labels

WHOLE = Infer(((1.0,),))
PIPELINE = Infer(((0.5,), (0.5,)))
"""The same model cut into two stages of equal length."""


def on_two_gpus() -> Static:
    """Two models that share one pipeline over both GPUs."""
    return Static({"m000": [("g0", "g1")], "m001": [("g0", "g1")]})


def test_a_shared_pipeline_waits_exactly_half_as_long_as_dedicated_gpus(
    lab: SimpleNamespace,
) -> None:
    """AlpaServe (Li et al., OSDI'23), section 3, on one sample path.

    Each dedicated GPU hears the path a; the pipeline, shared by both models, hears it twice as
    fast. Times on a grid of 2^-20 s: nothing is rounded, waits are compared to the bit.
    """
    n, grid = 20_000, 2.0**-19  # halved, still on the grid
    path = np.cumsum(np.rint(np.random.default_rng(8).exponential(1 / 0.8, n) / grid) * grid)
    both = lab.trace(np.repeat(path, 2), np.tile([0, 1], n))
    dedicated = lab.play(both, engine=WHOLE, gpu_bytes=(1, 1))
    waits = (dedicated.sojourn_s - 1.0).reshape(n, 2)
    assert np.array_equal(waits[:, 0], waits[:, 1])
    merged = lab.trace(path / 2, np.arange(n) % 2)
    shared = lab.play(merged, on_two_gpus(), PIPELINE, gpu_bytes=(2, 2), gpus=2)
    assert np.array_equal(2 * (shared.sojourn_s - 1.0), waits[:, 0])
    assert waits.max() > 1.0
    assert np.array_equal(waits[:, 0], lindley(path))


def lindley(arrivals: np.ndarray) -> np.ndarray:
    """Waits at one server with service time 1."""
    waits = np.zeros(len(arrivals))
    for k, gap in enumerate(np.diff(arrivals)):
        waits[k + 1] = max(0.0, waits[k] + 1.0 - gap)
    return waits


@pytest.mark.parametrize(
    ("rate", "dedicated", "pipeline"),
    [(0.6, 1.214286, 1.107143), (1.0, 1.5, 1.25), (1.6, 3.0, 2.0)],
)
def test_replicas_and_pipeline_take_as_long_as_md1(
    lab: SimpleNamespace, rate: float, dedicated: float, pipeline: float
) -> None:
    n = 300_000
    models = np.random.default_rng(9).integers(0, 2, n)
    asked = lab.trace(lab.poisson(rate, n), models)
    apart = lab.play(asked, engine=WHOLE, gpu_bytes=(1, 1))
    assert lab.near(apart.sojourn_s, dedicated) == ""
    shared = lab.play(asked, on_two_gpus(), PIPELINE, gpu_bytes=(2, 2), gpus=2)
    assert lab.near(shared.sojourn_s, pipeline) == ""


@pytest.mark.parametrize("rate", [0.6, 1.6])
def test_a_pipeline_of_unequal_stages_waits_for_its_longest(
    lab: SimpleNamespace, rate: float
) -> None:
    """D_s + rate D_m^2 / (2 (1 - rate D_m)); the longest stage is the second."""
    n, longest, total = 300_000, 0.6, 1.0
    stages = Infer(((total - longest,), (longest,)))
    asked = lab.trace(lab.poisson(rate, n), np.arange(n) % 2)
    shared = lab.play(asked, on_two_gpus(), stages, gpu_bytes=(2, 2), gpus=2)
    exact = total + rate * longest**2 / (2 * (1 - rate * longest))
    assert lab.near(shared.sojourn_s, exact) == ""


@pytest.mark.parametrize("classes", list(permutations(range(3))))
def test_an_incomplete_batch_waits_from_its_oldest_request_of_any_class(
    lab: SimpleNamespace, classes: tuple[int, int, int]
) -> None:
    """Whichever class came first, and whatever class goes first: all leave after one delay."""
    names = ("a", "b", "c")
    engine = Infer(((0.25,) * 4,), max_delay_s=1.0)
    asked = lab.trace(
        [2.0, 2.25, 2.75], prompt=1, slo_class=Labels(np.array(classes, np.int32), names)
    )
    served = lab.play(asked, engine=engine, slo_classes=dict.fromkeys(names, Slo()))
    assert served.finish_s.tolist() == [2.0 + 1.0 + 0.25] * 3


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Infer(((0.5,), (0.5,)), servers=3), "m000: 3 servers and 2 stages: only one server"),
        (Infer(((0.5, 0.6), (0.5,))), "m000: its stages have latencies for 2, 1 batch sizes"),
        (Infer(((), ())), "m000: its stages have latencies for 0, 0 batch sizes"),
        (Infer(()), "m000: its stages have latencies for no batch sizes"),
    ],
)
def test_a_lane_that_cannot_be_simulated_is_refused(
    lab: SimpleNamespace, engine: Infer, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        lab.play(lab.trace([0.0]), engine=engine)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


# Continuous batching


def batches(fixed_s: float, per_sequence_s: float, seats: int = 1024) -> Generate:
    """An engine whose iteration with n sequences takes fixed + per_sequence * n."""
    a, b = fixed_s, per_sequence_s
    step = StepTime(a, b, b, 1, 0.0, a, b, b, 1)
    block = 1 << 20
    return Generate(
        step, seats * block, max_num_seqs=seats, max_batched_tokens=1024, block_tokens=block,
        prefix_caching=False,
    )  # fmt: skip


def birth_death(rate: float, death: np.ndarray, seats: int) -> tuple[float, float]:
    """Mean time in the system and share of arrivals that wait; `death[n]` from state n + 1."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(rate / death))])
    share = np.exp(logs - logs.max())
    share /= share.sum()
    states = np.arange(len(share))
    return float(states @ share) / rate, float(share[seats:].sum())


@pytest.mark.parametrize("law", ["exp", "det", "h2"])
def test_iterations_as_long_as_their_batch_are_processor_sharing(
    lab: SimpleNamespace, law: str
) -> None:
    """E[T(x)] = x/(1-rho), insensitive to the law of the lengths.

    A request of N tokens is N iterations of work. It joins at the end of an iteration: with 2000
    of them on average, that is less than 1/1000 of its time.
    """
    n, rho, tokens = 400_000, 0.8, 2000
    rng = np.random.default_rng(10)
    lengths = {
        "exp": rng.geometric(1 / tokens, n),
        "det": np.full(n, tokens),
        "h2": rng.geometric(1 / (tokens * np.where(rng.random(n) < 0.9, 0.5, 5.5))),
    }[law]
    b = 1 / tokens
    asked = lab.trace(lab.poisson(rho, n), prompt=1, output=lengths)
    served = lab.play(asked, engine=batches(0.0, b))
    assert lab.near(served.sojourn_s, float(np.mean(lengths)) * b / (1 - rho)) == ""
    short = lengths <= tokens
    exact = float(np.mean(lengths[short])) * b / (1 - rho)
    assert lab.near(served.sojourn_s[short], exact) == ""


def test_iterations_of_constant_length_are_many_servers(lab: SimpleNamespace) -> None:
    """M/M/B: with b = 0 each of B sequences is served at its own full speed."""
    n, seats, tokens = 200_000, 8, 1000
    rng = np.random.default_rng(11)
    asked = lab.trace(lab.poisson(6.4, n), prompt=1, output=rng.geometric(1 / tokens, n))
    served = lab.play(asked, engine=batches(1 / tokens, 0.0, seats))
    death = np.minimum(np.arange(1, 400), seats).astype(float)
    exact, _ = birth_death(6.4, death, seats)
    assert lab.near(served.sojourn_s, exact) == ""


@pytest.mark.parametrize(("rate", "sojourn"), [(6.0, 2.6842), (10.0, 3.4001), (12.0, 3.9474)])
def test_continuous_batching_is_a_birth_death_chain_within_three_percent(
    lab: SimpleNamespace, rate: float, sojourn: float
) -> None:
    """Geometric lengths of mean L, iterations of a + b n, at most B at a time."""
    a, b, mean, seats, n = 0.010, 0.0002, 200, 64, 200_000
    k = np.minimum(np.arange(1, 2000), seats)
    exact, waiting = birth_death(rate, k / (mean * (a + b * k)), seats)
    assert exact == pytest.approx(sojourn, abs=1e-4)
    lengths = np.random.default_rng(12).geometric(1 / mean, n)
    asked = lab.trace(lab.poisson(rate, n), prompt=1, output=lengths)
    served = lab.play(asked, engine=batches(a, b, seats))
    assert served.sojourn_s.mean() == pytest.approx(exact, rel=0.03)
    late = served.first_s - served.arrival_s > 2.01 * (a + b * seats)
    assert late.mean() == pytest.approx(waiting, abs=0.02)
    if rate == 12.0:
        assert waiting == pytest.approx(0.0588, abs=1e-4)
