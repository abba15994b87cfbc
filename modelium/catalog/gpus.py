"""GPUs by name: memory, bandwidth, FLOPs and links, each figure with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from modelium.catalog.lookup import find, read, simplify

_MAKERS = ("nvidia-", "amd-", "instinct-")


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One kind of GPU: peak figures, dense (no sparsity); links in one direction."""

    name: str
    memory_bytes: int
    """What the driver reports as total."""
    bandwidth_bytes_per_s: float
    bf16_flops: float
    """Per second, with tensor cores."""
    pcie_bytes_per_s: float
    fp8_flops: float | None = None
    """None: computes no FP8."""
    nvlink_bytes_per_s: float | None = None
    """To the other GPUs of a node (AMD: Infinity Fabric); None: they talk over PCIe."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Where each figure is from, by its name here."""

    @property
    def peer_bytes_per_s(self) -> float:
        """Bandwidth to another GPU of the same node, over the best link there is."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s


def gpu(name: str) -> GpuSpec:
    """The GPU called `name`: "h100-80g", "h100", or what its driver calls it.

    Raises ProfileError for a name that is not in the catalogue.
    """
    return find("GPU", _plain(name), *_catalogue())


def gpus() -> Mapping[str, GpuSpec]:
    """Every GPU of the catalogue, by name."""
    return _catalogue()[0]


@cache
def _catalogue() -> tuple[Mapping[str, GpuSpec], Mapping[str, GpuSpec]]:
    """The GPUs by name, and by name or alias."""
    specs: dict[str, GpuSpec] = {}
    known: dict[str, GpuSpec] = {}
    for name, entry in read("gpus.json").items():
        aliases = entry.pop("aliases")
        figures = {key: value for key, (value, _) in entry.items()}
        sources = {key: source for key, (_, source) in entry.items()}
        spec = GpuSpec(name, **figures, sources=MappingProxyType(sources))
        specs[name] = spec
        known |= dict.fromkeys((name, *aliases), spec)
    return MappingProxyType(specs), MappingProxyType(known)


def _plain(name: str) -> str:
    plain = simplify(name)
    for maker in _MAKERS:
        plain = plain.removeprefix(maker)
    return plain
