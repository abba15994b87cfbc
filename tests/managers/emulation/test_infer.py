"""Dynamic batching in closed form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.emulated.server.infer import Inferrer, Job
from modelium.managers.emulated.server.spec import Infer, parse
from tests.managers.emulation.virtual import VirtualLoop


def play(asked: list[tuple[float, int]], speed: float = 1.0, tokens: int = 0, **more: Any):
    """(seconds of each answer, the engine) for requests given as (arrival_s, items)."""
    loop = VirtualLoop()
    spec = parse({"model": "m", "engine": {"kind": "infer", **more}}).engine
    assert isinstance(spec, Infer)
    engine = Inferrer(spec, speed, loop, loop.clock)  # type: ignore[arg-type]
    ends = [float("nan")] * len(asked)
    for k, (at_s, items) in enumerate(asked):
        job = Job(items, tokens, lambda k=k: ends.__setitem__(k, loop.now_s))
        loop.call_at(at_s, engine.put, job)
    loop.run()
    assert not engine.running
    assert engine.finished == len(asked)
    return ends, engine


def test_one_request_takes_its_latency() -> None:
    ends, _ = play([(1.0, 2)], latency_s=[[0.1, 0.15, 0.2]], fixed_s=0.01)
    assert ends == pytest.approx([1.16])


def test_work_takes_time_by_the_token() -> None:
    ends, _ = play([(0.0, 1)], tokens=300, latency_s=[[0.1]], per_token_s=1e-3)
    assert ends == pytest.approx([0.4])


def test_what_arrives_together_is_one_batch() -> None:
    ends, engine = play([(0.0, 1)] * 3, latency_s=[[0.1, 0.15, 0.2, 0.3]])
    assert ends == pytest.approx([0.2] * 3)
    assert (engine.batches, engine.items) == (1, 3)


def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    ends, _ = play([(0.0, 1), (0.01, 1), (0.02, 1)], latency_s=[[0.1, 0.15]])
    assert ends == pytest.approx([0.1, 0.25, 0.25])


def test_a_batch_never_splits_a_request_nor_grows_too_large() -> None:
    ends, engine = play([(0.0, 2), (0.0, 3), (0.0, 1)], latency_s=[[0.1, 0.2, 0.3, 0.4]])
    assert ends == pytest.approx([0.2, 0.6, 0.6])
    assert engine.batches == 2


def test_an_incomplete_batch_waits_for_more_but_not_for_ever() -> None:
    ends, _ = play([(0.0, 1), (0.03, 1)], latency_s=[[0.1, 0.15, 0.2]], max_delay_s=0.05)
    assert ends == pytest.approx([0.2, 0.2])
    ends, _ = play([(0.0, 1), (0.03, 2)], latency_s=[[0.1, 0.15, 0.2]], max_delay_s=0.05)
    assert ends == pytest.approx([0.23, 0.23])


def test_what_was_answered_or_given_up_fills_no_batch() -> None:
    """A lone item waits its whole delay, whatever came before it."""
    shape: dict[str, Any] = {"latency_s": [[0.1, 0.15, 0.2]], "max_delay_s": 0.05}
    ends, _ = play([(0.0, 3), (1.0, 1)], **shape)
    assert ends == pytest.approx([0.2, 1.15])
    loop = VirtualLoop()
    spec = parse({"model": "m", "engine": {"kind": "infer", **shape}}).engine
    engine = Inferrer(spec, 1.0, loop, loop.clock)  # type: ignore[arg-type]
    gone, stays = (Job(2, 0, lambda: done.append(loop.now_s)) for _ in range(2))
    done: list[float] = []
    engine.put(gone)
    loop.call_at(0.01, engine.drop, gone)
    loop.call_at(0.02, engine.put, stays)
    loop.run()
    assert done == pytest.approx([0.22])


@given(st.integers(1, 12), st.integers(1, 3))
def test_servers_share_the_queue(requests: int, servers: int) -> None:
    ends, _ = play([(0.0, 1)] * requests, latency_s=[[0.1]], servers=servers)
    assert ends == pytest.approx([0.1 * (1 + k // servers) for k in range(requests)])


@given(st.integers(1, 12), st.lists(st.floats(0.01, 0.5), min_size=1, max_size=4))
def test_stages_of_a_pipeline_overlap(requests: int, stages: list[float]) -> None:
    """The k-th of equal jobs leaves a flow shop after all stages and k times the slowest."""
    ends, _ = play([(0.0, 1)] * requests, latency_s=[[s] for s in stages])
    assert ends == pytest.approx([sum(stages) + k * max(stages) for k in range(requests)])


def test_speed_divides_all_times() -> None:
    ends, _ = play([(0.0, 1)] * 2, 10.0, latency_s=[[0.1]], fixed_s=0.05)
    assert ends == pytest.approx([0.015, 0.025])


def test_a_request_whose_client_left_takes_no_room() -> None:
    loop = VirtualLoop()
    spec = parse({"model": "m", "engine": {"kind": "infer", "latency_s": [[0.1]]}}).engine
    engine = Inferrer(spec, 1.0, loop, loop.clock)  # type: ignore[arg-type]
    ends: list[float] = []
    jobs = [Job(1, 0, lambda: ends.append(loop.now_s)) for _ in range(3)]
    for job in jobs:
        engine.put(job)
    loop.call_at(0.05, engine.drop, jobs[1])
    loop.run()
    assert ends == pytest.approx([0.1, 0.2])
    assert not engine.waiting
