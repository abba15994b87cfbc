"""The emulated engine makes tokens when the simulator's does; and what only a real one must do."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.emulated.server import generate
from modelium.managers.emulated.server.generate import Batcher, Sequence
from modelium.managers.emulated.server.spec import Generate, parse
from modelium.sim import spec as sim
from tests.managers.emulation.virtual import VirtualLoop

PS = 1e12
STEP = {
    "decode_c": 0.005, "decode_lo": 1e-4, "decode_hi": 3e-4, "decode_hinge": 3, "decode_kv": 1e-6,
    "mixed_c": 0.007, "mixed_lo": 2e-5, "mixed_hi": 5e-5, "mixed_hinge": 40, "mixed_decode": 1e-5,
    "mixed_prefill": 2e-5, "mixed_kv": 2e-6, "mixed_ctx": 3e-8, "mixed_sq": 2e-8,
    "decode_bends": ((2, 5e-5), (5, -2e-5)),
}  # fmt: skip


def reference() -> ModuleType:
    """The simulator's text in plain Python."""
    path = Path(__file__).parents[2] / "sim" / "reference_generate.py"
    found = importlib.util.spec_from_file_location("reference_of_emulation", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


REFERENCE = reference()


def engine(loop: VirtualLoop, speed: float = 1.0, **more: Any) -> Batcher:
    given_spec = {"kind": "generate", "kv_tokens": 10_000, "step": STEP, **more}
    spec = parse({"model": "m", "engine": given_spec}).engine
    assert isinstance(spec, Generate)
    return Batcher(spec, speed, loop, loop.clock)  # type: ignore[arg-type]


def play(batcher: Batcher, loop: VirtualLoop, asked: list[tuple[float, int, int]]) -> list[Any]:
    """Seconds of each token of each request, given as (arrival_s, prompt, output)."""
    times: list[list[float]] = [[] for _ in asked]
    for k, (at_s, prompt, output) in enumerate(asked):
        sequence = Sequence(prompt, output, lambda _, k=k: times[k].append(loop.now_s))
        loop.call_at(at_s, batcher.put, sequence)
    loop.run()
    return times


def simulated(spec: Generate, asked: list[tuple[float, int, int]]) -> list[list[float]]:
    """The same by the simulator's reference, which steps after all else that happens at a time."""
    fields = {**dataclasses.asdict(spec), "prefix_caching": False}
    fields["step"] = sim.StepTime(**fields["step"])
    twin = REFERENCE.ReferenceEngine(sim.Generate(**fields))
    sequences = [REFERENCE.Sequence(k, p, o) for k, (_, p, o) in enumerate(asked)]
    times: list[list[float]] = [[] for _ in asked]
    coming = sorted((round(at_s * PS), k) for k, (at_s, _, _) in enumerate(asked))
    while coming or twin.due_ps != REFERENCE.NEVER:
        if coming and coming[0][0] <= twin.due_ps:
            now, k = coming.pop(0)
            twin.put(sequences[k], now)
            continue
        now, before = twin.due_ps, [s.emitted for s in sequences]
        twin.step()
        for k, sequence in enumerate(sequences):
            if sequence.emitted > before[k]:
                times[k].append(now / PS)
        if not twin.chunks:
            twin.due_ps = REFERENCE.NEVER
    return times


REQUESTS = st.lists(
    st.tuples(st.integers(0, 400).map(lambda ms: ms * 1.000_37e-3), st.integers(1, 90),
              st.integers(1, 25)),
    min_size=1, max_size=14,
)  # fmt: skip


@given(REQUESTS, st.integers(8, 64), st.integers(1, 6), st.integers(0, 2))
def test_tokens_come_when_the_simulator_says(
    asked: list[tuple[float, int, int]], budget: int, seats: int, watermark: int
) -> None:
    """Chunked prefill, seats, KV blocks, preemption: everything but prefix caching."""
    exact = pytest.MonkeyPatch()
    exact.setattr(generate, "TIMER_S", 1e-13)
    loop = VirtualLoop()
    shape = {"max_batched_tokens": budget, "max_num_seqs": seats, "kv_tokens": 160}
    batcher = engine(loop, **shape, block_tokens=8, watermark_blocks=watermark)
    times = play(batcher, loop, asked)
    exact.undo()
    wanted = simulated(batcher.spec, asked)
    assert [len(t) for t in times] == [output for _, _, output in asked]
    for ours, theirs in zip(times, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)
    assert batcher.free_blocks == batcher.blocks
    assert batcher.finished == len(asked)


def test_preemption_is_among_what_was_compared() -> None:
    loop = VirtualLoop()
    batcher = engine(loop, kv_tokens=160, block_tokens=8)
    play(batcher, loop, [(0.0, 70, 25), (0.0, 70, 25)])
    assert batcher.preemptions > 0


@pytest.mark.parametrize("speed", [2.0, 10.0])
def test_speed_divides_all_times(speed: float) -> None:
    asked = [(0.0, 30, 20), (0.0, 60, 5)]
    slow, fast = VirtualLoop(), VirtualLoop()
    exact = pytest.MonkeyPatch()
    exact.setattr(generate, "TIMER_S", 1e-13)
    one = play(engine(slow), slow, asked)
    other = play(engine(fast, speed), fast, asked)
    exact.undo()
    for ours, theirs in zip(one, other, strict=True):
        assert [t / speed for t in ours] == pytest.approx(theirs, abs=1e-9)


def test_timers_of_a_millisecond_delay_tokens_but_do_not_add_up() -> None:
    asked = [(0.0, 30, 200)]
    loop = VirtualLoop()
    batcher = engine(loop)
    late = [a - b for a, b in zip(play(batcher, loop, asked)[0],
                                  simulated(batcher.spec, asked)[0], strict=True)]  # fmt: skip
    assert all(-1e-9 <= x <= generate.TIMER_S for x in late)


def test_a_process_that_was_held_up_does_not_catch_up_for_long() -> None:
    """After a stop of 10 s it makes up 0.1 s of work, not 10 s."""
    loop = VirtualLoop()
    batcher = engine(loop)
    times: list[float] = []
    batcher.put(Sequence(10, 1000, lambda _: times.append(loop.now_s)))

    def stall() -> None:
        loop.now_s += 10.0

    loop.call_at(1.0, stall)
    loop.run()
    burst = [t for t in times if 11.0 <= t < 11.0 + 1e-6]
    assert 10 < len(burst) < 25


def test_at_infinite_speed_nothing_waits() -> None:
    loop = VirtualLoop()
    times = play(engine(loop, float("inf")), loop, [(0.0, 5000, 100), (0.0, 10, 10)])
    assert {t for each in times for t in each} == {0.0}


def test_sequences_that_nobody_waits_for_leave_at_once() -> None:
    loop = VirtualLoop()
    batcher = engine(loop, max_num_seqs=1)
    made: list[int] = []
    first = Sequence(10, 100, lambda _: made.append(1))
    second = Sequence(10, 3, lambda _: made.append(2))
    third = Sequence(10, 3, lambda _: made.append(3))
    for sequence in (first, second, third):
        batcher.put(sequence)
    loop.call_at(0.1, batcher.drop, first)
    loop.call_at(0.1, batcher.drop, third)
    loop.run()
    assert 1 <= made.count(1) < 30
    assert (made.count(2), made.count(3)) == (3, 0)
    assert batcher.free_blocks == batcher.blocks
    assert batcher.finished == 1


@pytest.mark.parametrize("forget", [True, False])
def test_a_pause_keeps_requests_and_what_they_have_said(forget: bool) -> None:
    loop = VirtualLoop()
    batcher = engine(loop)
    times: list[float] = []
    batcher.put(Sequence(50, 40, lambda _: times.append(loop.now_s)))
    loop.call_at(0.1, lambda: batcher.pause(forget=forget))
    loop.call_at(0.15, lambda: batcher.put(Sequence(5, 1, lambda _: None)))
    loop.call_at(5.0, batcher.resume)
    loop.run()
    assert len(times) == 40
    assert any(t < 0.1 for t in times)
    assert not any(0.1 < t < 5.0 for t in times)
    assert batcher.finished == 2
    assert batcher.free_blocks == batcher.blocks
