"""Which engine serves a model best, and why."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from modelium.analyze.reading import Weights
from modelium.analyze.shape import ENCODERS, model_type

_TRITON_FORMATS = frozenset({"onnx", "torchscript"})


def suggest(architecture: str, config: Mapping[str, Any], weights: Weights) -> tuple[str, str]:
    """The engine ("vllm", "triton" or "ray") and the reason in a few words."""
    if weights.format in _TRITON_FORMATS:
        return "triton", f"Triton has a backend for {weights.format} files"
    if architecture in _vllm_architectures():
        return "vllm", f"{architecture} is one of its own architectures"
    if "auto_map" in config:
        return "ray", "it brings its own code, which a Ray Serve deployment can run"
    if model_type(config) in ENCODERS:
        return "triton", "an encoder answers whole batches, which dynamic batching serves best"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "ray", f"vLLM is not known to support {architecture}; Ray Serve runs any Python"
    return "ray", "neither vLLM nor Triton is known to support it; Ray Serve runs any Python"


@cache
def _vllm_architectures() -> frozenset[str]:
    lines = (Path(__file__).parent / "vllm_architectures.txt").read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
