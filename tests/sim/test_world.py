"""The compiled world equals the plain one to the bit, whatever the control side does and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from lockstep import Both, play, plots, steps

from modelium.sim.spec import Admission, Generate, Infer

UNIT_S = 0.37e-3


def plot(
    engines: list[Generate | Infer], asked: list[tuple[float, Any]], acts: list[Any], **more: Any
) -> dict[str, Any]:
    """One copy of each engine on one GPU, requests (when, which model), and what befalls them."""
    return {
        "unit_s": UNIT_S, "gpus": 1, "engines": engines, "widths": [1] * len(engines), "slo": 60,
        "classes": 1, "router": "least_outstanding", "admission": Admission(),
        "asked": [(at, asks if isinstance(asks, tuple) else ask(asks)) for at, asks in asked],
        "begin": list(range(len(engines))), "acts": acts, "retries": 0, "eager": False, **more,
    }  # fmt: skip


def ask(model: int, prompt: int = 1, output: int = 1) -> tuple[int, ...]:
    return (model, prompt, output, 0, -1, -1)


def outcomes(both: Both) -> list[str]:
    return [request.outcome for request in both.world.requests]


@given(plots())
@settings(max_examples=300, deadline=None)
def test_compiled_world_equals_the_reference_to_the_bit(plot: dict[str, Any]) -> None:
    play(plot)


def test_an_engine_alone_again_runs_at_full_speed() -> None:
    """It was slowed down when it fell idle; its neighbour has gone before it works again."""
    unit_s = 0.37e-3
    engines = [
        Generate(steps(unit_s, [2, 1, 0, 0, 3, 1, 0, 0, 0, k], 0.0), 40, max_num_seqs=2)
        for k in (1, 5)
    ]
    asked = [(0, (0, 2, 2, 0, -1, -1)), (0, (1, 2, 9, 0, -1, -1)), (400, (0, 2, 3, 0, -1, -1))]
    plot = {
        "unit_s": unit_s, "gpus": 1, "engines": engines, "widths": [1, 1], "slo": 60, "classes": 1,
        "router": "least_outstanding", "admission": Admission(), "asked": asked, "begin": [0, 1],
        "acts": [(5, "expire", 0), (300, "drain", 1)], "retries": 0, "eager": False,
    }  # fmt: skip
    both = play(plot)
    assert [request.outcome for request in both.world.requests] == ["completed"] * 3
    assert both.seen["shared"]
    assert not both.seen["tie"]


def test_what_a_crash_frees_is_retried_in_order_of_arrival() -> None:
    """Some were in a batch, some in the queue; the other copy takes them as they came."""
    unit_s = 0.37e-3
    plot = {
        "unit_s": unit_s, "gpus": 2, "engines": [Infer(((20 * unit_s, 30 * unit_s),))],
        "widths": [1], "slo": 60, "classes": 1, "router": "round_robin", "admission": Admission(),
        "asked": [(k, (0, 1, 1, 0, -1, -1)) for k in range(14)], "begin": [0, 1],
        "acts": [(18, "crash", 0)], "retries": 1, "eager": False,
    }  # fmt: skip
    both = play(plot)
    assert both.seen["busy copy crashed"]
    retried = [r.times[1] for r in both.world.requests if r.retries]
    assert len(retried) > 3
    assert retried == sorted(retried)


def turns(*units: int) -> Infer:
    """Takes turns on its GPU; batches of one, two, … take so long."""
    return Infer((tuple(k * UNIT_S for k in units),))


def test_who_was_queued_at_a_lost_copy_delays_nobody() -> None:
    """Admission counts those who wait for the same lane; those of a copy that crashed do not."""
    asked = [(k, 0) for k in range(7)] + [(16, 1)]
    both = play(
        plot(
            [turns(20, 30), turns(20, 30)], asked, [(15, "crash", 0)],
            slo=100, admission=Admission(deadline=True),
        )
    )  # fmt: skip
    assert outcomes(both)[:7] == ["failed"] * 7
    assert outcomes(both)[7] == "completed"


def test_who_flew_with_a_lost_copy_is_no_longer_in_line() -> None:
    """The last in flight is lost; who comes next is answered after the first."""
    both = play(plot([turns(20), turns(20)], [(0, 1), (1, 0), (6, 1)], [(5, "crash", 0)]))
    assert outcomes(both) == ["completed", "failed", "completed"]


def test_a_lane_of_which_all_were_lost_slows_nobody_down() -> None:
    """It shared a GPU with a language model, which has it for itself again."""
    llm = Generate(steps(UNIT_S, [2, 1, 0, 0, 3, 1, 0, 0, 0, 1], 0.0), 40, max_num_seqs=2)
    asked = [(0, 0), (1, 0), (8, ask(1, 2, 9))]
    both = play(plot([turns(20), llm], asked, [(5, "crash", 0)]))
    assert outcomes(both) == ["failed", "failed", "completed"]
    assert not both.seen["shared"]


def test_who_takes_over_a_slot_forms_its_own_batches() -> None:
    """The copy before it answered one by one; two that come together make one batch here."""
    asked = [(0, 0), *[(3, 1)] * 4]
    acts = [(2, "crash", 0), (2, "load", 1), (2, "ready", 0)]
    both = play(plot([turns(1), turns(20, 25)], asked, acts, begin=[0]))
    assert outcomes(both) == ["completed"] * 5
    answered = [both.plane.w.answer_s[k] / UNIT_S for k in range(1, 5)]
    assert answered == pytest.approx([28, 28, 53, 53])


def test_a_batch_begins_when_its_server_is_free_to_the_bit() -> None:
    """Not at the picosecond nearest to it: work ends between two of the clock's ticks."""
    third = Infer(((1e-3 / 3, 1.7e-3 / 3),), fixed_s=1e-4 / 7)
    both = play(plot([third], [(0.1, 0)] * 5 + [(3.3, 0)] * 4, [], unit_s=1e-3 / 7))
    begun = [both.world.requests[k].job.answer_s for k in range(9)]
    assert outcomes(both) == ["completed"] * 9
    assert any(round(s * 1e12) / 1e12 != s for s in begun)


def test_a_request_begins_when_it_arrives_to_the_bit() -> None:
    """Not at the picosecond nearest to it."""
    both = play(plot([Infer(((1e-3,),))], [(1 / 3, 0), (2 / 3, 0)], [], unit_s=1e-3))
    first = both.plane.w.answer_s[0]
    assert first == both.trace.arrival_s[0] + 1e-3
    assert first != round(both.trace.arrival_s[0] * 1e12) / 1e12 + 1e-3


def test_a_wait_of_exactly_the_limit_is_too_long() -> None:
    """`expire` takes those that arrived at the limit, too, and leaves who came a tick later."""
    both = Both(plot([turns(20)], [(10, 0), (10, 0), (11, 0)], [], begin=[]))
    both.advance(round(20 * UNIT_S * 1e12))
    limit = int(both.plane.w.arrival_ps[0])
    waiting = []
    for before in (limit - 1, limit):
        both.plane.expire("m0", before)
        waiting.append(both.plane.demand["m0"].waiting)
    assert waiting == [3, 1]
    assert both.plane.oldest_waiting_ps("m0") == both.plane.w.arrival_ps[2]


def test_what_is_longer_than_the_context_is_rejected_as_vllm_answers_400() -> None:
    """A prompt that leaves no room for a token, and more output than a prompt leaves."""
    llm = Generate(
        steps(UNIT_S, [2, 1, 0, 0, 3, 1, 0, 0, 0, 1], 0.0), 400, max_num_seqs=2, max_model_len=10
    )
    lengths = [(9, 1), (10, 1), (10, 0), (9, 2), (3, 7), (3, 8), (11, 1), (1, 0)]
    asked = [(k, ask(0, prompt, output)) for k, (prompt, output) in enumerate(lengths)]
    fits = [
        "completed" if prompt + max(output, 1) <= 10 else "rejected" for prompt, output in lengths
    ]
    both = play(plot([llm], asked, []))
    assert outcomes(both) == fits
    assert fits.count("rejected") == 5
