"""Choosing GPUs in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, make_plan
from modelium.config.files import examine
from modelium.config.hardware import Hardware
from modelium.errors import ConfigError
from modelium.units import GIB

FLEET: list[Any] = [
    {"kind": "h100-80g", "uuid": "GPU-aa11"},
    {"kind": "h100-80g", "uuid": "GPU-aa22"},
    {"kind": "l4-24g", "uuid": "GPU-bb33"},
    "l4-24g",
]


def hardware(use: Any, gpus: Any = FLEET) -> Hardware:
    return make_plan(Config.of({"cluster": {"gpus": gpus, "use": use}})).hardware


@pytest.mark.parametrize(
    ("use", "ids"),
    [
        ([0, 2, "gpu3"], ["gpu0", "gpu2", "gpu3"]),
        ("GPU-aa2", ["gpu1"]),
        ([3, "GPU-aa11"], ["gpu0", "gpu3"]),  # in the order of the cluster
        ("l4-24g", ["gpu2", "gpu3"]),
        (["h100", 2], ["gpu0", "gpu1", "gpu2"]),
        (1, ["gpu1"]),
        ([1, 1, "gpu1"], ["gpu1"]),
    ],
)
def test_the_gpus_that_are_named_are_used_under_their_own_names(use: Any, ids: list[str]) -> None:
    found = hardware(use)
    assert [gpu.id for gpu in found.gpus] == ids
    assert [gpu.id for gpu in found.names] == ids
    assert {gpu.id for gpu in found.left_out} == {f"gpu{i}" for i in range(4)} - set(ids)
    assert list(found.devices.values()) == list(range(len(ids)))


def test_who_leaves_gpus_out_leaves_their_memory_but_not_the_machines() -> None:
    fleet = "2xh100-80g+2xl4"
    assert [node.id for node in hardware(["l4-24g"], fleet).nodes] == ["node1"]
    whole, part = (hardware(use, "4xh100-80g").nodes[0] for use in (None, [0]))
    assert whole.host_bytes == part.host_bytes > 80 * GIB


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ([0, 7], r"cluster\.use: no GPU is called '7'\. There are GPUs 0, 1, 2, 3\."),
        ("gpu9", r"cluster\.use: no GPU is called 'gpu9'\. Did you mean 'gpu\d'\?"),
        ("GPU-aa33", r"cluster\.use: no GPU is called 'GPU-aa33'\. Did you mean 'GPU-\w\w33'\?"),
        ("h200", r"cluster\.use: no GPU is called 'h200'"),
        ("GPU-aa", r"'GPU-aa' begins the UUIDs of several GPUs: GPU-aa11, GPU-aa22\. Give more"),
    ],
)
def test_an_entry_that_names_nothing_is_an_error(use: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        hardware(use)


@pytest.mark.parametrize(
    ("cluster", "why"),
    [
        ("{gpus: l4, use: []}", "cluster.use: [], expected"),
        ("{gpus: l4, use: [true]}", "cluster.use: True is neither a GPU's number nor its UUID"),
        ("{gpus: l4, use: {a: 1}}", "cluster.use: {'a': 1} is neither a GPU's number"),
        ("{gpus: [{kind: l4, count: 2, uuid: GPU-1}]}", "uuid names one GPU, so count has to be 1"),
    ],
)
def test_what_cannot_name_gpus_is_refused_with_its_place(
    tmp_path: Path, cluster: str, why: str
) -> None:
    file = tmp_path / "modelium.yaml"
    file.write_text(f"cluster: {cluster}\n")
    config, problems = examine(file)
    assert config is None
    assert any(why in problem for problem in problems), problems
