"""The shape of a model from a Hugging Face `config.json`, whatever its family calls things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelium.analyze.layers import Layers, count_layers
from modelium.catalog import Architecture
from modelium.errors import ProfileError

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "max_context": (
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "active_experts": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
    "expert_intermediate": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_experts": ("n_shared_experts",),
    "dense_layers": ("first_k_dense_replace",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "rope_head_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
}  # fmt: skip
_NEEDED = ("layers", "hidden", "heads")
_MAY_BE_ZERO = frozenset({"experts", "shared_experts", "dense_layers", "q_lora_rank"})
_PLAIN_MLP = frozenset({
    "bert", "bloom", "camembert", "distilbert", "electra", "falcon", "gpt2", "gpt_bigcode",
    "gpt_neox", "gptj", "mpt", "nemotron", "opt", "phi", "roberta", "starcoder2", "xlm-roberta",
})  # fmt: skip
"""Model types whose feed-forward block has two matrices rather than three."""
ENCODERS = frozenset({
    "albert", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra",
    "modernbert", "mpnet", "new", "nomic_bert", "roberta", "siglip", "vit", "xlm-roberta",
})  # fmt: skip
_TIED_UNLESS_STATED = frozenset({
    "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2",
    "mpt", "opt",
})  # fmt: skip
_MOST = 1 << 31


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, which multimodal models keep apart."""
    for key in ("text_config", "llm_config", "language_config"):
        part = config.get(key)
        if isinstance(part, dict):
            return {"model_type": config.get("model_type"), **part}
    return config


def model_type(config: Mapping[str, Any]) -> str:
    """The family's name, such as "llama"; empty if `config` has none."""
    value = config.get("model_type")
    return value if isinstance(value, str) else ""


def read_shape(config: Mapping[str, Any]) -> tuple[Architecture | None, tuple[str, ...]]:
    """The shape that `config` describes, or None, and what could not be found out.

    Raises ProfileError for figures that no model can have.
    """
    text = text_config(config)
    notes = [] if text is config else ["the parts that see or hear: only the text part is counted"]
    if config.get("is_encoder_decoder"):
        return None, ("KV bytes per token: it is an encoder-decoder, of another shape",)
    figures = {key: _figure(text, names) for key, names in _NAMES.items()}
    absent = [_NAMES[key][0] for key in _NEEDED if not figures[key]]
    if absent:
        return None, (f"its shape: config.json has no {', '.join(absent)}",)
    layers, layer_notes = count_layers(text, figures["layers"])
    notes += layer_notes
    if not figures["max_context"]:
        notes.append("context length: config.json does not state it")
    return _architecture(text, figures, layers), tuple(notes)


def _architecture(text: Mapping[str, Any], figures: dict[str, int], layers: Layers) -> Architecture:
    kind = model_type(text)
    figures["intermediate"] = figures["intermediate"] or 4 * figures["hidden"]
    if figures["kv_lora_rank"]:
        figures["kv_heads"] = figures["heads"]
        figures["head_dim"] = figures["rope_head_dim"] + _figure(text, ("qk_nope_head_dim",))
    figures["kv_heads"] = _kv_heads(text, figures)
    figures["head_dim"] = figures["head_dim"] or figures["hidden"] // figures["heads"]
    figures |= _experts(text, figures)
    _check(figures)
    return Architecture(
        **figures,
        tied_embeddings=text.get("tie_word_embeddings", kind in _TIED_UNLESS_STATED) is True,
        gated_mlp=kind not in _PLAIN_MLP,
        causal=kind not in ENCODERS or text.get("is_decoder") is True,
        sliding_window=layers.window,
        sliding_layers=layers.sliding,
        recurrent_layers=layers.recurrent,
    )


def _check(figures: Mapping[str, int]) -> None:
    """Raise ProfileError for figures that contradict each other."""
    heads, kv_heads = figures["heads"], figures["kv_heads"]
    if heads % kv_heads:
        raise ProfileError(f"config.json: {heads} heads cannot share {kv_heads} heads of keys")
    if not figures["head_dim"]:
        raise ProfileError(f"config.json: a width of {figures['hidden']} has no {heads} heads")
    if figures["dense_layers"] > figures["layers"]:
        raise ProfileError(
            f"config.json: {figures['dense_layers']} of {figures['layers']} layers cannot be dense"
        )


def _kv_heads(text: Mapping[str, Any], figures: dict[str, int]) -> int:
    """Heads of keys and values; Falcon and its like say in words that there is one."""
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    attention = text.get("attn_config")
    if isinstance(attention, dict):
        figures["kv_heads"] = figures["kv_heads"] or _figure(attention, ("kv_n_heads",))
    return figures["kv_heads"] or figures["heads"]


def _experts(text: Mapping[str, Any], figures: dict[str, int]) -> dict[str, int]:
    """Figures of the mixture of experts, all zero where there is none."""
    if figures["experts"] < 2:
        names = ("experts", "active_experts", "expert_intermediate", "shared_experts")
        return dict.fromkeys((*names, "dense_layers"), 0)
    width = figures["expert_intermediate"] or figures["intermediate"]
    shared = figures["shared_experts"]
    if not shared:
        shared = _figure(text, ("shared_expert_intermediate_size",)) // width
    dense = text.get("mlp_only_layers")
    return {
        "active_experts": min(figures["active_experts"] or 1, figures["experts"]),
        "expert_intermediate": width,
        "shared_experts": shared,
        "dense_layers": len(dense)
        if isinstance(dense, list) and dense
        else figures["dense_layers"],
    }


def _figure(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of `names` that `config` states, or zero. Raises ProfileError if it is absurd."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        least = 0 if any(name in _NAMES[key] for key in _MAY_BE_ZERO) else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            text = repr(value)[:60]
            raise ProfileError(f"config.json: {name} is {text}, expected a whole number >= {least}")
        return value
    return 0
