"""Language models of 0.1 million random parameters, in the files that Hugging Face models have.

Written by hand, so that they need neither torch nor a tokenizer's library: vLLM, transformers and
`modelium analyze` read them as they read a real one. Text is cut into bytes; a head has 32 values,
because vLLM's attention on CPUs refuses less.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

BYTES = 256
END = "<|end|>"
CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

Tensors = dict[str, npt.NDArray[np.float32]]


def llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 32,
    context: int = 2048,
    weights: bool = True,
) -> Path:
    """Write a Llama into `folder` and return it; without `weights`, only what describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, vocabulary = heads * head_dim, 2 * heads * head_dim, BYTES + 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BYTES,
        "eos_token_id": BYTES,
        "torch_dtype": "float32",
    }
    _json(folder / "config.json", config)
    _tokenizer(folder)
    if weights:
        _safetensors(folder / "model.safetensors", _weights(seed, layers, hidden, inner))
    return folder


def _weights(seed: int, layers: int, hidden: int, inner: int) -> Tensors:
    random, vocabulary = np.random.default_rng(seed), BYTES + 64

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.normal(0.0, 0.2, (rows, columns)).astype(np.float32)

    ones = np.ones(hidden, np.float32)
    tensors = {
        "model.embed_tokens.weight": matrix(vocabulary, hidden),
        "model.norm.weight": ones,
        "lm_head.weight": matrix(vocabulary, hidden),
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        tensors |= {f"{stem}.self_attn.{one}_proj.weight": matrix(hidden, hidden) for one in "qkvo"}
        tensors |= {
            f"{stem}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{stem}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{stem}.mlp.down_proj.weight": matrix(hidden, inner),
            f"{stem}.input_layernorm.weight": ones,
            f"{stem}.post_attention_layernorm.weight": ones,
        }
    return tensors


def _safetensors(path: Path, tensors: Tensors) -> None:
    """The format: length of the header, the header as JSON, the numbers one after another."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def _tokenizer(folder: Path) -> None:
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": BYTES, "content": END, "special": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | plain],
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": cut,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": vocabulary, "merges": [],
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": 1_000_000,
        "chat_template": CHAT,
    }
    _json(folder / "tokenizer.json", tokenizer)
    _json(folder / "tokenizer_config.json", settings)


def _letters() -> list[str]:
    """A printable letter for each byte, as byte-level tokenizers since GPT-2 have them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(BYTES)]


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
