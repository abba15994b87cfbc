"""Settings of a model's runtime, from the configuration to what a live cluster is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, make_plan
from modelium.config.engines import Engines
from modelium.config.liveplan import served
from modelium.config.yaml import load
from modelium.errors import ConfigError
from tests.live import tiny

WEIGHTS = "path: m, weights: 1GiB, infer: {latency: [5ms]}"


def settings(runtime: str, text: str, folder: Path) -> dict[str, Any]:
    """What the manager of the model "m" will find in its order."""
    if not (folder / "m").exists():
        tiny.llama(folder / "m")
    whole = f"""
        cluster: {{gpus: h100-80g}}
        model_repository: {folder}
        models: {{m: {{{WEIGHTS}, runtime: {runtime}, settings: {text}}}}}
    """
    config = Config.of(load(whole, "test"))
    plan = make_plan(config)
    return dict(served(config, plan, Engines(plan.models), "m").settings)


def test_lists_and_mappings_arrive_as_they_were_written(tmp_path: Path) -> None:
    found = settings("vllm", "{cudagraph_capture_sizes: [1, 2], kv_transfer: {a: [b]}}", tmp_path)
    assert found["cudagraph_capture_sizes"] == [1, 2]
    assert found["kv_transfer"] == {"a": ["b"]}
    tensor = "[{name: X, data_type: TYPE_FP32, dims: [-1, 3]}]"
    found = settings("triton", f"{{input: {tensor}, max_batch_size: 8}}", tmp_path)
    assert found["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert type(found["max_batch_size"]) is int
    assert settings("ray", "{args: {sizes: [1, 2.5]}}", tmp_path)["args"] == {"sizes": [1, 2.5]}


@pytest.mark.parametrize(
    ("runtime", "text", "why"),
    [
        ("vllm", "{max_model_len: [1, 2]}",
         r"models\.m\.settings\.max_model_len: --max-model-len of vLLM takes one value"),
        ("triton", "{instances: [2]}",
         r"models\.m\.settings\.instances: instances is \[2\], expected a whole number"),
        ("ray", "{agrs: {}}",
         r"models\.m\.settings\.agrs: Ray has no setting 'agrs'\. Did you mean 'args'"),
    ],
)  # fmt: skip
def test_what_a_runtime_does_not_take_is_named_with_its_place(
    tmp_path: Path, runtime: str, text: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        settings(runtime, text, tmp_path)
