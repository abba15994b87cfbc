"""What is assumed where nothing is configured."""

from __future__ import annotations

import pytest

from modelium import catalog
from modelium.config.planning.guess import guess_fleet, guess_models, parse_models
from modelium.core import Model
from modelium.errors import ConfigError
from modelium.units import GIB


def known(names: list[str], text: str = "") -> tuple[dict[str, str | None], list[str]]:
    entries, said = guess_models(names, *parse_models(text))
    return {name: entry.catalogue for name, entry in entries.items()}, said


def test_names_of_the_trace_are_found_in_the_catalogue() -> None:
    found, said = known(["meta-llama/Llama-3.1-8B-Instruct", "phi-4"])
    assert found == {"meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b", "phi-4": "phi-4"}
    assert said == []


def test_unknown_names_are_dealt_a_stand_in_and_that_is_said() -> None:
    found, said = known(["f1", "phi-4", "f2"])
    assert found == {"f1": "llama-3.1-8b", "phi-4": "phi-4", "f2": "llama-3.1-8b"}
    assert "2 models such as 'f1', taken for llama-3.1-8b" in said[0]


def test_names_are_given_and_the_rest_is_dealt_in_turn() -> None:
    found, _ = known(["a", "b", "c", "d"], "b=phi-4, qwen2.5-7b, gemma-2-9b")
    assert found == {"a": "qwen2.5-7b", "b": "phi-4", "c": "gemma-2-9b", "d": "qwen2.5-7b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=lama-3.1-8b", r"--models a=lama-3\.1-8b: no model called .* Did you mean"),
        ("nonsense", r"--models nonsense: no model called 'nonsense'"),
        ("aa=phi-4", r"--models aa=…: no such model in the trace\. Did you mean 'aaa'\?"),
    ],
)
def test_wrong_names_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        known(["aaa"], text)


@pytest.mark.parametrize(
    ("sizes", "gpus", "fleet"),
    [([10], 1, "1x"), ([70] * 4, 1, "2x"), ([140], 2, "2x"), ([70] * 20, 1, "2x8x")],
)
def test_the_fleet_has_room_for_half_of_the_models(sizes: list[int], gpus: int, fleet: str) -> None:
    assert 2 * 0.9 * catalog.gpu("h100-80g").memory_bytes > 2 * 70 * GIB
    models = [Model(f"m{i}", size * GIB, gpus=gpus) for i, size in enumerate(sizes)]
    assert guess_fleet(models) == f"{fleet}h100-80g"
