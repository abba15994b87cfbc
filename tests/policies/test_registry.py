"""Policies by name: parameters from text, plug-ins, errors that say what would be right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from modelium.cli import cli
from modelium.errors import PolicyError
from modelium.plugins.parameters import parameters
from modelium.plugins.registry import describe, find, make_policy, names
from modelium.policies import POLICIES
from modelium.policies.belady_cost import BeladyCost
from modelium.policies.gdsf import Gdsf
from modelium.policies.idle_ttl import IdleTtl
from modelium.policies.lru import Lru
from modelium.traces import Labels, Trace


def test_a_bare_name_makes_the_policy_with_its_defaults() -> None:
    assert isinstance(make_policy("lru"), Lru)


def test_every_built_in_policy_can_be_made_or_says_what_it_needs() -> None:
    for name in POLICIES:
        if name != "belady_cost":
            make_policy(name)


def test_text_becomes_what_the_constructor_expects() -> None:
    kinds = {p.name: p for p in parameters(IdleTtl)}
    assert kinds["idle_s"].convert("30min") == 1800.0
    assert kinds["idle_s"].convert("inf") == float("inf")
    assert kinds["window_s"].convert("none") is None
    assert kinds["max_replicas"].convert("3") == 3
    assert kinds["place"].convert("best_fit") == "best_fit"
    assert {p.name: p for p in parameters(find("lfu"))}["in_cache"].convert("yes") is True
    made: Any = make_policy("gdsf:variant=gds, max_replicas=2,scale_every_s=1min")
    assert isinstance(made, Gdsf)
    assert made.label == "gds"
    assert made.every_s == 60.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gdfs", "no policy called 'gdfs'. Did you mean 'gdsf'? (modelium policies lists them)"),
        ("lru:plac=best_fit", "policy 'lru' has no parameter 'plac'. Did you mean 'place'?"),
        (
            "lru:place=bestfit",
            "policy 'lru': place is 'bestfit', expected most_free or best_fit or first_fit. "
            "Did you mean 'best_fit'?",
        ),
        ("lru:max_replicas=two", "policy 'lru': max_replicas is 'two', expected a whole number."),
        ("lru:max_replicas", "policy 'lru': 'max_replicas' is not of the form key=value"),
        ("lru:sleep_level=3", "policy 'lru': sleep_level is '3', expected 0 or 1 or 2."),
        (
            "idle_ttl:idle_s=soon",
            "policy 'idle_ttl': idle_s is 'soon', expected a duration such as 30s.",
        ),
        (
            "idle_ttl:idle_s=-5",
            "policy 'idle_ttl': idle_s is '-5', expected a duration such as 30s.",
        ),
        ("ilp:every_s=0", "policy 'ilp' has every_s = 0: the period must be above 0"),
        ("lfu:in_cache=perhaps", "policy 'lfu': in_cache is 'perhaps', expected true or false."),
        ("static:placement=x", "policy 'static' has no parameter 'placement'. It has no para"),
        ("belady_cost", "policy 'belady_cost' knows the future, so it needs a trace"),
        ("", "no policy called ''."),
    ],
)
def test_errors_name_the_value_and_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        make_policy(text)
    assert str(error.value).startswith(words)


def test_a_seed_reaches_policies_that_take_one_unless_the_text_gives_one() -> None:
    def numbers(text: str, seed: int) -> list[float]:
        policy: Any = make_policy(text, rng_seed=seed)
        return [policy._random.random() for _ in range(3)]

    assert numbers("random", 5) == numbers("random", 5) != numbers("random", 6)
    assert numbers("random:seed=5", 6) == numbers("random", 5)
    make_policy("lru", rng_seed=5)


def test_a_clairvoyant_policy_gets_each_models_arrivals() -> None:
    trace = Trace(
        np.array([0.5, 1.0, 2.5]),
        Labels.of(["b", "a", "b"]),
        np.ones(3, np.int32),
        np.ones(3, np.int32),
    )
    policy: Any = make_policy("belady_cost:place=first_fit", trace=trace, models=["a", "b", "c"])
    assert isinstance(policy, BeladyCost)
    assert policy._future == {"a": [1.0], "b": [0.5, 2.5], "c": []}


PLUGIN = '''
"""A policy of somebody else."""

from modelium.core import Miss


class Mine:
    """Load nothing, twice a day.

    often: how many times a day.
    tags: cannot be given as text.
    Source: a friend.
    """

    def __init__(self, often: int, tags: tuple = ()) -> None:
        self.often = often

    def decide(self, state, event):
        return []
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers policies by entry point."""
    (tmp_path / "mine_of_somebody.py").write_text(PLUGIN)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[modelium.policies]\nmine = mine_of_somebody:Mine\n"
        "lru = mine_of_somebody:Mine\ngone = mine_of_somebody:Gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_is_found_by_its_entry_point() -> None:
    assert names()[-2:] == ["mine", "gone"]
    policy: Any = make_policy("mine:often=2")
    assert policy.often == 2
    with pytest.raises(PolicyError, match="needs often: write mine:often=…"):
        make_policy("mine")
    with pytest.raises(PolicyError, match="Did you mean 'mine'"):
        make_policy("min")


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_cannot_replace_a_built_in_and_a_broken_one_says_where_it_is() -> None:
    assert isinstance(make_policy("lru"), Lru)
    with pytest.raises(PolicyError, match="cannot be imported from mine_of_somebody:Gone"):
        make_policy("gone")


@pytest.mark.usefixtures("plugin")
def test_a_broken_plug_in_hides_no_other_policy_from_the_list() -> None:
    said = CliRunner().invoke(cli, ["policies"])
    listed = [line.split()[0] for line in said.stdout.split("\n\n")[0].splitlines()]
    assert listed == [*POLICIES, "mine"]
    assert said.stderr.startswith("modelium: policy 'gone' cannot be imported")


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_is_described_from_its_docstring() -> None:
    assert describe("mine") == {
        "name": "mine",
        "where": "mine_of_somebody:Mine",
        "summary": "Load nothing, twice a day.",
        "details": [],
        "source": "a friend.",
        "told_the_trace": False,
        "parameters": [
            {
                "name": "often",
                "type": "int",
                "required": True,
                "default": None,
                "help": "how many times a day.",
            }
        ],
    }


@pytest.mark.parametrize("name", POLICIES)
def test_every_built_in_policy_explains_itself(name: str) -> None:
    told = describe(name)
    assert told["summary"].endswith(".")
    for row in told["parameters"]:
        assert row["help"], f"{name}: {row['name']} has no help"
    json.dumps(told)
    assert not [part for part in told["details"] if ": " in part.split(" ")[0]]


def test_naming_policies_imports_no_solver() -> None:
    code = "import sys, modelium.plugins.registry as r; r.names(); print('ortools' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# The command


def test_the_command_lists_all_policies(modelium: Callable[..., Any]) -> None:
    said = modelium("policies")
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines()[: len(POLICIES)]] == list(POLICIES)
    told = json.loads(modelium("policies", "--json").out)
    assert [row["name"] for row in told["policies"]] == list(POLICIES)


def test_the_command_explains_one_policy(modelium: Callable[..., Any]) -> None:
    said = modelium("policies", "idle_ttl")
    assert "idle_s (float, default 3600.0)" in said.out
    assert "sleep_s (float, default inf)" in said.out
    assert json.loads(modelium("policies", "idle_ttl", "--json").out) == describe("idle_ttl")


def test_a_wrong_name_is_one_line_and_exit_code_2(modelium: Callable[..., Any]) -> None:
    said = modelium("policies", "gdfs")
    assert said.code == 2
    assert said.out == ""
    assert said.err == (
        "modelium: no policy called 'gdfs'. Did you mean 'gdsf'? (modelium policies lists them)\n"
    )
