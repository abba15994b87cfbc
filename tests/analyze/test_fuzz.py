"""Whatever lies in the files, there is an answer or one clear error."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelium.analyze import analyze
from modelium.cli.analyze import analyze as command
from modelium.errors import ModeliumError

FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(0, 300),
    st.floats(),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4)
)
KEYS = st.sampled_from(
    [
        "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings",
        "num_local_experts", "num_experts_per_tok", "n_shared_experts", "first_k_dense_replace",
        "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "sliding_window",
        "layer_types", "text_config", "architectures", "model_type", "torch_dtype", "auto_map",
        "attn_layer_period", "attn_layer_offset", "full_attention_interval", "mlp_only_layers",
        "hybrid_override_pattern", "max_window_layers", "use_sliding_window", "attn_config",
        "shared_expert_intermediate_size", "multi_query", "is_encoder_decoder",
        "tie_word_embeddings",
    ]
)  # fmt: skip


def answers(folder: Path) -> None:
    """Analyze `folder`, and print what comes of it."""
    try:
        files = analyze(folder)
    except ModeliumError as error:
        message = str(error)
    else:
        message = "none"
        assert files.weights_bytes >= 0
        assert files.kv_bytes_per_token is None or files.kv_bytes_per_token >= 0
        json.dumps(files.as_dict())
        assert command.callback is not None
        command.callback(str(folder), (), False)
    assert "\n" not in message
    assert 0 < len(message.encode()) < 1000


@FUZZ
@given(changes=st.dictionaries(KEYS, JSON, max_size=4))
def test_any_config(llama: Path, llama_config: dict[str, Any], changes: dict[str, Any]) -> None:
    (llama / "config.json").write_text(json.dumps(llama_config | changes))
    answers(llama)


@FUZZ
@given(value=JSON)
def test_any_json_as_config(tmp_path: Path, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(value))
    answers(tmp_path)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_as_any_file(tmp_path: Path, content: bytes) -> None:
    for name in ("config.json", "model.safetensors", "model.onnx", "model.pt"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        answers(folder)


@FUZZ
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "BF16", "F4", "F9"]) | SCALARS,
                "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
                "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
            },
        ),
        max_size=3,
    ),
    size=st.integers(0, 60),
)
def test_any_header(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(size)
    (tmp_path / "model.safetensors").write_bytes(content)
    answers(tmp_path)


@FUZZ
@given(data=st.data())
def test_any_flipped_or_cut_byte(
    tmp_path: Path, safetensors: Callable[..., bytes], data: st.DataObject
) -> None:
    content = bytearray(safetensors({"a": ("F32", [2, 3]), "b": ("BF16", [4])}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "model.safetensors").write_bytes(bytes(content[:cut]))
    answers(tmp_path)


@FUZZ
@given(
    index=st.fixed_dictionaries(
        {
            "weight_map": st.dictionaries(
                st.sampled_from(["a", "lm_head.weight"]),
                st.sampled_from(["model.safetensors", "..", "x"]) | SCALARS,
            )
            | JSON
        },
        optional={"metadata": st.fixed_dictionaries({"total_size": JSON}) | JSON},
    )
)
def test_any_index(llama: Path, index: dict[str, Any]) -> None:
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    answers(llama)
