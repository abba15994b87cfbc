"""Settings of a model's runtime, from the configuration to what a live cluster is given."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, Plan, make_plan
from modelium.config.planning.engines import Engines
from modelium.config.planning.live import served, sleep_clashes
from modelium.config.yaml import load
from modelium.errors import ConfigError
from modelium.live.settings import Served
from modelium.managers.emulated.server.spec import parse
from modelium.managers.engine import Order
from modelium.managers.vllm import command as vllm_command
from modelium.plugins.registry import make_policy
from modelium.sim.spec import Generate
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
    return dict(served(config, plan, Engines(plan.models, plan.hardware.by_kind()), "m").settings)


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


def given(text: str, folder: Path, *, sleeps: bool = True) -> tuple[Served, Plan]:
    """A small Llama for vLLM, as a live cluster is given it, and the plan it comes from."""
    if not (folder / "m").exists():
        tiny.llama(folder / "m")
    whole = f"cluster: {{gpus: h100-80g}}\nmodel_repository: {folder}\n{text}"
    config = Config.of(load(whole, "test"))
    plan = make_plan(config)
    return served(
        config, plan, Engines(plan.models, plan.hardware.by_kind()), "m", sleeps=sleeps
    ), plan


@pytest.mark.parametrize(
    ("text", "most", "tokens"),
    [
        ("models: {m: {path: m}}", 256, 8192),
        ("models: {m: {path: m, vllm: {max_num_seqs: 64}}}", 64, 8192),
        ("models: {m: {path: m, settings: {max_num_seqs: 32}}}", 32, 8192),
        ("models: {m: {path: m, flags: [--max-num-seqs, '16']}}", 16, 8192),
        ("vllm: {flags: ['--max-num-batched-tokens=512']}\nmodels: {m: {path: m}}", 256, 512),
    ],
)
def test_simulation_gateway_and_engine_count_with_the_same_batches(
    tmp_path: Path, text: str, most: int, tokens: int
) -> None:
    one, plan = given(text, tmp_path)
    engine = Engines(plan.models, plan.hardware.by_kind()).engine("m", "h100-80g")
    assert isinstance(engine, Generate)
    assert (engine.max_num_seqs, engine.max_batched_tokens) == (most, tokens)
    assert one.max_num_seqs == most
    order = Order("m#1", "m", one.path, settings=one.settings)
    words = vllm_command.command(Path("vllm"), order, "127.0.0.1", 8000, cpu=False)
    pairs = [word for text in words for word in text.split("=", 1)]
    said = dict(itertools.pairwise(pairs))  # the last of two wins, as with vLLM
    assert said["--max-num-seqs"] == str(most)
    assert said["--max-num-batched-tokens"] == str(tokens)


def test_models_of_sentence_transformers_keep_vllms_own_steps(tmp_path: Path) -> None:
    one, _ = given("models: {m: {path: m, runtime: vllm}}", tmp_path)
    assert one.settings["max_num_batched_tokens"] == 8192
    (tmp_path / "m" / "modules.json").write_text("[]")
    one, _ = given("models: {m: {path: m, runtime: vllm}}", tmp_path)
    assert "max_num_batched_tokens" not in one.settings


@pytest.mark.parametrize(
    ("text", "sleeps", "can"),
    [
        ("models: {m: {path: m}}", True, True),
        ("models: {m: {path: m}}", False, False),
        ("vllm: {sleep_mode: true}\nmodels: {m: {path: m}}", False, True),
        ("vllm: {sleep_mode: false}\nmodels: {m: {path: m}}", True, False),
        ("models: {m: {path: m, flags: [--enable-sleep-mode]}}", False, True),
        ("models: {m: {path: m, settings: {enable_sleep_mode: false}}}", True, False),
    ],
)
def test_engines_can_sleep_where_the_policy_or_the_operator_may_want_it(
    tmp_path: Path, text: str, sleeps: bool, can: bool
) -> None:
    assert given(text, tmp_path, sleeps=sleeps)[0].model.can_sleep is can


@pytest.mark.parametrize(
    ("policy", "sleeps"),
    [
        ("lru", False), ("lru:sleep_level=1", True), ("ilp", True), ("ilp:sleep=false", False),
        ("idle_ttl", False), ("idle_ttl:sleep_s=60", True), ("static", False), ("ffd", False),
    ],
)  # fmt: skip
def test_policies_say_whether_they_put_to_sleep(policy: str, sleeps: bool) -> None:
    assert make_policy(policy).sleeps is sleeps  # type: ignore[attr-defined]


def test_expandable_segments_are_told_to_clash_with_sleep_mode() -> None:
    text = """
        vllm: {env: {PYTORCH_ALLOC_CONF: "max_split_size_mb:64, expandable_segments:True"}}
        models: {llama-3.1-8b: {env: {PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:False"}}}
    """
    config = Config.of(load(text, "test"))
    [own] = sleep_clashes(config, {})
    assert own.startswith("PYTORCH_ALLOC_CONF=max_split_size_mb:64, expandable_segments:True (vllm")
    of_all = sleep_clashes(config, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
    assert len(of_all) == 2
    assert "(the environment of modelium) clashes with vLLM's sleep mode" in of_all[0]
    assert "\n" not in of_all[0]


@pytest.mark.parametrize(("said", "longest"), [("", 32768), ("vllm: {max_model_len: 4096}", 4096)])
def test_simulated_and_emulated_engines_keep_the_context_that_vllm_is_given(
    said: str, longest: int
) -> None:
    text = f"cluster: {{gpus: h100-80g}}\nmodels: {{qwen2.5-7b: {{{said}}}}}"
    config = Config.of(load(text, "test"))
    plan = make_plan(config)
    engines = Engines(plan.models, plan.hardware.by_kind())
    simulated = engines.engine("qwen2.5-7b", "h100-80g")
    assert isinstance(simulated, Generate)
    assert simulated.max_model_len == longest
    emulated = served(config, plan, engines, "qwen2.5-7b", emulate=True).settings
    assert parse({**emulated, "model": "m"}).max_model_len == longest
