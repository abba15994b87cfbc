"""Tiny model folders, written by hand."""

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}
Tensors = Mapping[str, tuple[str, list[int]]]


def header_of(tensors: Tensors) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return header


def safetensors_bytes(tensors: Tensors) -> bytes:
    header = header_of(tensors)
    text = json.dumps(header).encode()
    data = sum(prod(shape) * SIZES[dtype] for dtype, shape in tensors.values())
    return struct.pack("<Q", len(text)) + text + bytes(data)


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A complete folder: two layers, one file."""
    write_json(tmp_path / "config.json", LLAMA)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(llama_tensors()))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in two files with an index."""
    write_json(tmp_path / "config.json", LLAMA)
    tensors = list(llama_tensors().items())
    weight_map = {}
    for i, part in enumerate((tensors[:5], tensors[5:])):
        name = f"model-{i + 1:05}-of-00002.safetensors"
        (tmp_path / name).write_bytes(safetensors_bytes(dict(part)))
        weight_map |= {tensor: name for tensor, _ in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    write_json(tmp_path / "model.safetensors.index.json", index)
    return tmp_path


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a config.json of the given keys and nothing else."""

    def write(**config: Any) -> Path:
        write_json(tmp_path / "config.json", config)
        return tmp_path

    return write


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def llama_tensors() -> dict[str, tuple[str, list[int]]]:
    hidden, kv, inter, vocab = 64, 32, 128, 256
    tensors = {"model.embed_tokens.weight": ("BF16", [vocab, hidden])}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": ("BF16", [hidden, hidden]),
            f"{prefix}.self_attn.k_proj.weight": ("BF16", [kv, hidden]),
            f"{prefix}.self_attn.v_proj.weight": ("BF16", [kv, hidden]),
            f"{prefix}.self_attn.o_proj.weight": ("BF16", [hidden, hidden]),
            f"{prefix}.mlp.gate_proj.weight": ("BF16", [inter, hidden]),
            f"{prefix}.mlp.up_proj.weight": ("BF16", [inter, hidden]),
            f"{prefix}.mlp.down_proj.weight": ("BF16", [hidden, inter]),
        }
    return tensors | {"lm_head.weight": ("BF16", [vocab, hidden])}


@pytest.fixture
def safetensors() -> Callable[[Tensors], bytes]:
    """Writes a safetensors file."""
    return safetensors_bytes


@pytest.fixture
def llama_config() -> dict[str, Any]:
    """The configuration of the folder `llama`."""
    return dict(LLAMA)
