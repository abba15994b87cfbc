"""Which layers of a model look at everything, at a window, or keep a state of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Layers:
    """How many layers are not plain attention, and how far the sliding ones look back."""

    sliding: int = 0
    window: int = 0
    recurrent: int = 0


_GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Families that alternate: every n-th layer is global, by default of their configuration class."""
_SLIDING_MARKS = ("sliding", "local", "chunked")


def count_layers(text: Mapping[str, Any], layers: int) -> tuple[Layers, list[str]]:
    """The kinds of `layers` layers by a configuration, and notes on what was not understood."""
    types = text.get("layer_types")
    window = _positive(text.get("sliding_window")) or _positive(text.get("attention_chunk_size"))
    if isinstance(types, list) and all(isinstance(kind, str) for kind in types):
        if len(types) != layers:
            return Layers(), [f"layer kinds: {len(types)} are listed for {layers} layers"]
        return _by_type(types, window)
    recurrent = _recurrent(text, layers)
    if recurrent:
        return Layers(recurrent=recurrent), [_STATE_NOTE]
    return _by_window(text, layers, window), []


_STATE_NOTE = "the state of recurrent layers, a fixed amount for each sequence"


def _by_type(types: list[str], window: int) -> tuple[Layers, list[str]]:
    sliding = sum(any(mark in kind for mark in _SLIDING_MARKS) for kind in types)
    full = sum("full" in kind or kind in ("attention", "global") for kind in types)
    recurrent = len(types) - sliding - full
    notes = [_STATE_NOTE] if recurrent else []
    if sliding and not window:
        notes.append("sliding window: its width is not stated, so it is taken for unbounded")
        sliding = 0
    return Layers(sliding, window if sliding else 0, recurrent), notes


def _by_window(text: Mapping[str, Any], layers: int, window: int) -> Layers:
    """Families from before `layer_types`."""
    if not window or text.get("use_sliding_window") is False:
        return Layers()
    context = _positive(text.get("max_position_embeddings"))
    if context and window >= context:
        return Layers()
    every = _positive(text.get("sliding_window_pattern"))
    every = every or _GLOBAL_EVERY.get(str(text.get("model_type")), 0)
    if every:
        return Layers(layers - layers // every, window)
    first = 0
    if text.get("use_sliding_window") is True:  # Qwen2: the first layers stay global
        first = min(_positive(text.get("max_window_layers")), layers)
    return Layers(layers - first, window) if first < layers else Layers()


def _recurrent(text: Mapping[str, Any], layers: int) -> int:
    """Recurrent layers of hybrids that say it in their own way."""
    pattern = text.get("hybrid_override_pattern")  # Nemotron-H: "*" is attention
    if isinstance(pattern, str):
        return max(layers - pattern.count("*"), 0)
    every = _positive(text.get("full_attention_interval")) or _positive(
        text.get("attn_layer_period")
    )
    if not every:
        return 0
    offset = _positive(text.get("attn_layer_offset")) if "attn_layer_period" in text else every - 1
    return layers - len(range(offset, layers, every))


def _positive(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
