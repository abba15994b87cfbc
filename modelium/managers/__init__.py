"""Managers of engines, one a runtime; each is usable alone and imports its client when made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "EmulatedManager": "modelium.managers.emulated.manager",
    "RayManager": "modelium.managers.ray.manager",
    "TritonManager": "modelium.managers.triton.manager",
    "VLLMManager": "modelium.managers.vllm.manager",
}


def __getattr__(name: str) -> Any:
    """Import a manager when it is asked for: the others' clients may be missing."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
