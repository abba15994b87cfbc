"""Choosing GPUs in the configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, make_plan
from modelium.config.files import examine
from modelium.config.planning.hardware import Hardware
from modelium.config.schema import FoundGpu, NodeEntry
from modelium.core import Model
from modelium.errors import ConfigError
from modelium.plugins.registry import make_policy
from modelium.sim import simulate
from modelium.traces import Workload, generate
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


def allowed(words: Any, use: Any = None, **model: Any) -> list[str] | None:
    """The GPUs that a model may use, by what the configuration says."""
    entry = {"catalogue": "llama-3.2-1b", "gpus_allowed": words, **model}
    cluster = {"gpus": FLEET, "use": use}
    plan = make_plan(Config.of({"cluster": cluster, "models": {"m": entry}}))
    bound = plan.models["m"].model.gpus_allowed
    return None if bound is None else sorted(bound)


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (None, None),
        ([0, "GPU-bb"], ["gpu0", "gpu2"]),
        ("l4-24g", ["gpu2", "gpu3"]),
        ("gpu1", ["gpu1"]),
    ],
)
def test_a_model_is_bound_to_the_gpus_that_are_named(words: Any, ids: list[str] | None) -> None:
    assert allowed(words) == ids


def test_a_bound_model_is_bound_to_what_is_used_of_its_gpus() -> None:
    assert allowed("l4-24g", use=[0, 2]) == ["gpu2"]
    with pytest.raises(ConfigError, match=r"models\.m: gpus_allowed: '3' is a GPU that clus"):
        allowed([0, 3], use=[0, 2])
    with pytest.raises(ConfigError, match=r"gpus_allowed: no GPU is called 'gpu7'\. Did you mean"):
        allowed("gpu7")


def test_a_bound_model_is_sized_for_the_gpus_that_it_may_use() -> None:
    def gpus(words: Any) -> int:
        entry = {"catalogue": "qwen2.5-14b", "gpus_allowed": words}
        return make_plan(
            Config.of({"cluster": {"gpus": FLEET}, "models": {"m": entry}})
        ).models["m"].model.gpus  # fmt: skip

    assert (gpus("h100"), gpus("l4-24g")) == (1, 2)


def test_simulate_keeps_models_on_their_gpus() -> None:
    """Both would go to the H100s, which have most room."""
    models = {
        "phi-4": {"gpus_allowed": ["GPU-aa22"]},
        "llama-3.2-1b": {"gpus_allowed": "l4-24g"},
    }
    plan = make_plan(Config.of({"cluster": {"gpus": FLEET}, "models": models}))
    work = Workload(models=tuple(models), span_s=120.0, rate_per_s=0.5)
    run = simulate(plan.sim_input(), make_policy("lru"), generate(work, seed=1))
    loads = [row for row in run.decisions.to_pylist() if row["kind"] == "load"]
    places = {(row["model"], *row["gpus"].split()) for row in loads}
    assert places == {("phi-4", "gpu1"), ("llama-3.2-1b", "gpu2")}


def test_mig_instances_are_not_joined() -> None:
    parts = [
        FoundGpu(kind="l4-24g", memory=24 * GIB, device=i, number=f"0:{i}", parent="GPU-cut")
        for i in range(4)
    ]
    wholes = [FoundGpu(kind="h100-80g", device=4 + i, number=str(1 + i)) for i in range(2)]

    def model(there: list[FoundGpu], **entry: Any) -> Model:
        node = NodeEntry(name="n", gpus=[*there])
        given = Config.of({"models": {"m": {"catalogue": "llama-3.2-1b", **entry}}})
        config = replace(given, cluster=replace(given.cluster, nodes=[node]))
        return make_plan(config).models["m"].model

    assert model(parts).gpus == 1
    assert model(parts).gpus_allowed is None
    assert model([*parts, *wholes], gpus=2).gpus_allowed == {"gpu1", "gpu2"}
    with pytest.raises(ConfigError, match=r"it needs 2 GPUs, but those here are MIG instances"):
        model(parts, gpus=2)
