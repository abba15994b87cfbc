"""Well-known models by name: their shape and sizes, as published with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from modelium.catalog.architecture import Architecture
from modelium.catalog.lookup import find, read, simplify

_SAME_SHAPE = frozenset({"instruct", "chat", "it", "hf", "base", "preview"})
"""Parts of a name that say how a model was trained, not what it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(Architecture):
    """A named model: its shape, its size on disk, and where the figures are from."""

    name: str
    hf_id: str
    params: int
    """As published (sum over all tensors); within 1 % of `counted_params`."""
    dtype_bytes: float = 2
    """Of one weight: 2 for BF16, 1 for FP8, 0.5 for 4-bit."""
    kv_dtype_bytes: float = 2
    """Of one number in the KV cache."""

    @property
    def source(self) -> str:
        """Where shape and parameter count are from."""
        return f"config.json and the weights' index of {self.hf_id}"

    @property
    def active_params(self) -> int:
        """Parameters that work on one token: all of them, but for a mixture of experts."""
        return self.params - (self.counted_params - self.counted_active_params)

    @property
    def weights_bytes(self) -> int:
        """Of a whole copy."""
        return round(self.params * self.dtype_bytes)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one more token, as long as no sliding window drops it."""
        return round(self.kv_values_per_token * self.kv_dtype_bytes)

    def kv_bytes(self, tokens: int) -> int:
        """KV cache of one sequence of `tokens`, sliding windows honoured."""
        return round(self.kv_values(tokens) * self.kv_dtype_bytes)


def model(name: str) -> ModelSpec:
    """The model called `name`: "llama-3.1-8b" or "meta-llama/Llama-3.1-8B-Instruct".

    Raises ProfileError for a name that is not in the catalogue.
    """
    entries, known = _catalogue()
    of_hub = simplify(name.rpartition("/")[2])
    return find("model", of_hub if of_hub in known else _plain(of_hub), entries, known)


def models() -> Mapping[str, ModelSpec]:
    """Every model of the catalogue, by name, smallest first."""
    return _catalogue()[0]


@cache
def _catalogue() -> tuple[Mapping[str, ModelSpec], Mapping[str, ModelSpec]]:
    """The models by name, and by name or alias."""
    specs: dict[str, ModelSpec] = {}
    known: dict[str, ModelSpec] = {}
    for name, entry in read("models.json").items():
        aliases = entry.pop("aliases", ())
        spec = ModelSpec(name=name, **entry)
        specs[name] = spec
        known |= dict.fromkeys((name, *aliases), spec)
    return MappingProxyType(specs), MappingProxyType(known)


def _plain(name: str) -> str:
    parts = name.removeprefix("meta-").split("-")
    kept = [part for part in parts if part not in _SAME_SHAPE and not _is_version(part)]
    return "-".join(kept)


def _is_version(part: str) -> bool:
    """A release such as "v0.3" (but "v2" of "deepseek-v2-lite" belongs to the name)."""
    return part.startswith("v") and "." in part
