"""Specifications of emulated engines: what is refused, and how it is said."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from modelium.errors import ConfigError
from modelium.managers.emulated.server.spec import Generate, Infer, StepCosts, parse
from modelium.managers.emulated.server.words import WORDS, Words, count_tokens
from modelium.sim import spec as sim

GENERATE = {"kind": "generate", "kv_tokens": 1000, "step": {"decode_c": 0.01}}
INFER = {"kind": "infer", "latency_s": [[0.1]]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "the specification is []: it has to be an object"),
        ({}, "engine is None: it has to be an object"),
        ({"engine": GENERATE}, "model is missing"),
        ({"engine": GENERATE, "model": ""}, "model is ''"),
        ({"engine": GENERATE, "model": "m", "spede": 1}, "spede is unknown. Did you mean 'speed'?"),
        ({"engine": GENERATE, "model": "m", "speed": 0}, 'above 0, or "inf"'),
        ({"engine": GENERATE, "model": "m", "speed": "fast"}, "speed is 'fast'"),
        ({"engine": GENERATE, "model": "m", "stages": {"load": "1s"}}, "stages.load is '1s'"),
        ({"engine": {**GENERATE, "kv_tokens": 3}, "model": "m"}, "3 tokens serves nothing"),
        ({"engine": {**GENERATE, "kv_tokens": 0}, "model": "m"}, "are 1 or more"),
        ({"engine": {**GENERATE, "block_tokens": 0}, "model": "m"}, "block_tokens is 0"),
        ({"engine": {**GENERATE, "step": {}}, "model": "m"}, "engine.step.decode_c is missing"),
        ({"engine": {**GENERATE, "step": None}, "model": "m"}, "engine.step is None"),
        ({"engine": {**GENERATE, "step": {"decode_d": 1}}, "model": "m"}, "Did you mean 'decode_"),
        ({"engine": {"kind": "infer"}, "model": "m"}, "engine.latency_s is a list of stages"),
        ({"engine": {**INFER, "servers": 0}, "model": "m"}, "engine.servers is 0"),
        ({"engine": {**INFER, "latency_s": [[]]}, "model": "m"}, "is a list of stages"),
        ({"engine": {**INFER, "latency_s": [["a"]]}, "model": "m"}, "engine.latency_s is 'a'"),
    ],
)
def test_what_is_wrong_is_named(given: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(StepCosts, sim.StepTime), (Generate, sim.Generate), (Infer, sim.Infer)],
)
def test_fields_are_those_of_the_simulator(ours: Any, theirs: Any) -> None:
    """A profile goes from one world to the other as it is."""
    names = [[field.name for field in dataclasses.fields(one)] for one in (ours, theirs)]
    assert names[0] == names[1]


def test_speed_may_be_infinite_and_length_is_what_fits() -> None:
    spec = parse({"model": "m", "engine": GENERATE, "speed": "inf"})
    assert spec.speed == math.inf
    assert spec.max_model_len == 992


def test_words_need_no_escaping_and_are_all_different() -> None:
    assert len(set(WORDS)) == 1024
    assert all(word[:1] == b" " and word[1:].isalpha() and word.islower() for word in WORDS)


def test_the_stream_of_words_is_even_and_belongs_to_prompt_and_seed() -> None:
    first, same, other = Words(b"a", 0), Words(b"a", 0), Words(b"a", 1)
    made = [first.next() for _ in range(20_000)]
    assert made == [same.next() for _ in range(20_000)]
    assert made[:10] != [other.next() for _ in range(10)]
    assert len(set(made)) == 1024


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("a", 1), (" a  b\nc ", 3)])
def test_a_token_is_a_word(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
