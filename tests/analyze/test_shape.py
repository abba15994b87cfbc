"""Shapes from config.json: every family's words, and figures that no model can have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelium.analyze import analyze
from modelium.catalog import Architecture, model
from modelium.errors import ProfileError

Write = Callable[..., Path]
BASE = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 100}


def shape_of(folder: Path) -> Architecture:
    shape = analyze(folder).shape
    assert shape is not None
    return shape


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama-3.1-8b", {"model_type": "llama", "num_key_value_heads": 8}),
        ("qwen2.5-0.5b", {"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": False}),
        ("phi-3.5-mini", {"model_type": "phi3", "sliding_window": 262144}),
        ("gemma-2-9b", {"model_type": "gemma2", "sliding_window": 4096}),
        ("mixtral-8x7b", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        (
            "qwen3-30b-a3b",
            {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        ),
        (
            "deepseek-v2-lite",
            {
                "n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
                "n_shared_experts": 2, "first_k_dense_replace": 1, "kv_lora_rank": 512,
                "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
                "v_head_dim": 128, "head_dim": None,
            },
        ),
        ("bert-base", {"model_type": "bert", "num_key_value_heads": None}),
    ],
)  # fmt: skip
def test_catalogue_models_are_read_back_from_their_configs(
    configured: Write, name: str, config: dict[str, Any]
) -> None:
    spec = model(name)
    common = {
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context,
        "tie_word_embeddings": spec.tied_embeddings,
    }
    shape = shape_of(configured(**(common | config)))
    for field in Architecture.__dataclass_fields__:
        assert getattr(shape, field) == getattr(spec, field), field
    assert analyze(configured(**(common | config))).kv_bytes_per_token == spec.kv_bytes_per_token


def test_gpt2_words(configured: Write) -> None:
    config = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    files = analyze(configured(model_type="gpt2", architectures=["GPT2LMHeadModel"], **config))
    assert files.parameters == pytest.approx(124.4e6, rel=0.01)
    assert (files.attention, files.max_context, files.runtime) == ("MHA", 1024, "vllm")


def test_falcon_has_one_head_of_keys(configured: Write) -> None:
    config = {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
    folder = configured(model_type="falcon", multi_query=True, vocab_size=65024, **config)
    files = analyze(folder)
    assert (files.attention, files.kv_bytes_per_token) == ("MQA", 2 * 32 * 64 * 2)
    assert files.parameters == pytest.approx(6.92e9, rel=0.01)


@pytest.mark.parametrize(
    ("extra", "sliding", "recurrent"),
    [
        ({}, 0, 0),
        ({"sliding_window": 16}, 4, 0),
        ({"sliding_window": 16, "use_sliding_window": False}, 0, 0),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}, 1, 0),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 9}, 0, 0),
        ({"sliding_window": None}, 0, 0),
        ({"sliding_window": 512, "max_position_embeddings": 512}, 0, 0),
        ({"sliding_window": 16, "model_type": "gemma2"}, 2, 0),
        ({"sliding_window": 16, "sliding_window_pattern": 4}, 3, 0),
        (
            {
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            2,
            0,
        ),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 0, 3),
        ({"full_attention_interval": 3}, 0, 3),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, 0, 2),
        ({"hybrid_override_pattern": "M-M*"}, 0, 3),
        (
            {"layer_types": ["chunked_attention", "full_attention"] * 2, "attention_chunk_size": 8},
            2,
            0,
        ),
    ],
)  # fmt: skip
def test_layers_that_do_not_keep_everything(
    configured: Write, extra: dict[str, Any], sliding: int, recurrent: int
) -> None:
    files = analyze(configured(**BASE, **extra))
    assert files.shape is not None
    assert (files.shape.sliding_layers, files.shape.recurrent_layers) == (sliding, recurrent)
    per_layer = 2 * 64
    assert files.shape.kv_values(10_000) == per_layer * (
        (4 - sliding - recurrent) * 10_000 + sliding * files.shape.sliding_window
    )


def test_a_list_of_layers_of_the_wrong_length_is_said_not_used(configured: Write) -> None:
    files = analyze(configured(**BASE, layer_types=["full_attention"]))
    assert "layer kinds: 1 are listed for 4 layers" in files.unknown


def test_a_window_of_unknown_width_is_said_and_taken_for_unbounded(configured: Write) -> None:
    files = analyze(configured(**BASE, layer_types=["sliding_attention"] * 4))
    assert files.shape is not None
    assert files.shape.sliding_layers == 0
    assert any("width is not stated" in note for note in files.unknown)


def test_attention_is_named_by_its_kind(configured: Write) -> None:
    kinds = [analyze(configured(**BASE, num_key_value_heads=n)).attention for n in (8, 2, 1)]
    assert kinds == ["MHA", "GQA", "MQA"]
    assert analyze(configured(**BASE, model_type="bert")).attention == "none"
    latent = {"kv_lora_rank": 8, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 4}
    assert analyze(configured(**BASE, **latent)).attention == "MLA"


def test_a_multimodal_model_is_read_by_its_text_part(configured: Write) -> None:
    folder = configured(
        architectures=["LlavaForConditionalGeneration"],
        model_type="llava",
        text_config=BASE,
        vision_config={"hidden_size": 9},
    )
    files = analyze(folder)
    assert files.shape is not None
    assert (files.shape.hidden, files.runtime) == (64, "vllm")
    assert any("see or hear" in note for note in files.unknown)


def test_an_encoder_decoder_is_left_open(configured: Write) -> None:
    files = analyze(configured(model_type="t5", is_encoder_decoder=True, d_model=512))
    assert files.kv_bytes_per_token is None
    assert any("encoder-decoder" in note for note in files.unknown)


def test_what_is_missing_is_named(configured: Write) -> None:
    files = analyze(configured(hidden_size=64, num_hidden_layers=2))
    assert files.shape is None
    assert "its shape: config.json has no num_attention_heads" in files.unknown


@pytest.mark.parametrize("value", [-1, 0, 1.5, "64", True, [64], 10**12])
def test_absurd_figures_are_refused(configured: Write, value: object) -> None:
    with pytest.raises(ProfileError, match=r"config\.json: hidden_size is .*whole number >= 1"):
        analyze(configured(**(BASE | {"hidden_size": value})))


@pytest.mark.parametrize(
    "extra",
    [
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 16},
        {"num_attention_heads": 100},
        {"num_experts": 4, "first_k_dense_replace": 5},
    ],
)
def test_contradictions_are_refused(configured: Write, extra: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match=r"config\.json"):
        analyze(configured(**(BASE | extra)))


def test_a_spec_of_files_equals_the_catalogues(configured: Write) -> None:
    folder = configured(**BASE, tie_word_embeddings=True, torch_dtype="float32")
    spec = analyze(folder).spec
    assert spec is not None
    assert spec.weights_bytes == 4 * spec.counted_params
