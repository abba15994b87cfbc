"""GPUs by name: memory, bandwidth, FLOPs and links, each figure with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from modelium.catalog.gpunames import NameParts, parse, plain
from modelium.catalog.lookup import not_found, read
from modelium.errors import ProfileError
from modelium.units import GIB

MIG_SLICES = 7
"""Compute slices of a GPU that MIG can cut, but for those that say otherwise."""
_MEMORY_SLICES = {7: 8, 4: 4}
"""By compute slices (NVIDIA MIG user guide): 1g.10gb has an eighth of an H100's memory."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One kind of GPU: peak figures, dense (no sparsity); links in one direction."""

    name: str
    memory_bytes: int
    """What the driver reports as total."""
    bandwidth_bytes_per_s: float
    bf16_flops: float
    """Per second, with tensor cores; those of FP16 where it knows no BF16 (V100, Turing)."""
    pcie_bytes_per_s: float
    """From the host's memory, over whatever link there is."""
    fp8_flops: float | None = None
    """None: computes no FP8."""
    nvlink_bytes_per_s: float | None = None
    """To the other GPUs of a node (AMD: Infinity Fabric); None: they talk over PCIe. Bridges
    between pairs of PCIe cards are optional and not counted."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Where each figure is from, by its name here."""

    @property
    def peer_bytes_per_s(self) -> float:
        """Bandwidth to another GPU of the same node, over the best link there is."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s

    @property
    def works_alone(self) -> bool:
        """A MIG instance: no copy of a model can be spread over several."""
        return bool(parse(self.name).mig)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A GPU of the catalogue, and what tells it apart from others of its model."""

    spec: GpuSpec
    name: NameParts
    form: str
    memory_type: str
    mig_slices: int
    aliases: tuple[str, ...]

    def is_meant_by(self, asked: NameParts) -> bool:
        """Whether nothing in that name, which is of the same model, says otherwise."""
        return (
            asked.form in ("", self.form)
            and asked.memory_gib in (None, self.name.memory_gib)
            and (not self.memory_type or asked.memory_type in ("", self.memory_type))
        )


def gpu(name: str, memory_bytes: int | None = None) -> GpuSpec:
    """The GPU called `name`: "h100-80g", "h100", or what its driver calls it.

    Form factor and memory in the name have to be those of the entry: an "h100-pcie" is not taken
    for an "h100". `memory_bytes` chooses among variants that the name leaves open. A MIG instance
    ("... MIG 1g.10gb") has its share of the whole. Raises ProfileError for a name that is not in
    the catalogue.
    """
    asked = parse(name)
    entry = _find(name, asked, memory_bytes)
    return mig_instance(entry.spec, asked, entry.mig_slices) if asked.mig else entry.spec


def variant(asked: NameParts) -> GpuSpec | None:
    """A GPU of the same model in another form or with other memory, the same form first."""
    of_model = [entry for entry in _entries() if entry.name.model == asked.model]
    of_form = [entry for entry in of_model if entry.name.form == asked.form]
    return next((entry.spec for entry in (*of_form, *of_model)), None)


def mig_instance(whole: GpuSpec, asked: NameParts, slices: int = MIG_SLICES) -> GpuSpec:
    """The part of a GPU that a MIG profile names, with no links to others.

    Compute comes in `slices`, memory and its bandwidth in slices of their own. Raises ProfileError
    for a profile that the GPU cannot have.
    """
    if not 0 < asked.mig_slices <= slices or asked.size_gib is None:
        raise ProfileError(
            f"{asked.mig!r} is no MIG profile of a {whole.name}, such as 1g.10gb of an h100-80g"
        )
    compute = asked.mig_slices / slices
    memory_slices = _MEMORY_SLICES[slices]
    held = round(memory_slices * asked.size_gib * GIB / whole.memory_bytes)
    memory = min(max(held, 1), memory_slices) / memory_slices
    figures = {k: f"{v}; its share by MIG profile" for k, v in whole.sources.items()}
    figures.pop("nvlink_bytes_per_s", None)
    return replace(
        whole,
        name=f"{whole.name}-mig-{asked.mig}",
        memory_bytes=int(whole.memory_bytes * memory),
        bandwidth_bytes_per_s=whole.bandwidth_bytes_per_s * memory,
        bf16_flops=whole.bf16_flops * compute,
        fp8_flops=whole.fp8_flops and whole.fp8_flops * compute,
        nvlink_bytes_per_s=None,
        sources=MappingProxyType(figures),
    )


@cache
def gpus() -> Mapping[str, GpuSpec]:
    """Every GPU of the catalogue, by name."""
    return MappingProxyType({entry.spec.name: entry.spec for entry in _entries()})


def _find(name: str, asked: NameParts, memory_bytes: int | None) -> _Entry:
    alias = plain(name).removesuffix(f"-mig-{asked.mig}")
    of_model = [entry for entry in _entries() if entry.name.model == asked.model]
    if not asked.form:  # drivers say "PCIe" or "NVL" of those that are not the common form
        of_model = [entry for entry in of_model if not entry.name.form] or of_model
    meant = [entry for entry in of_model if entry.is_meant_by(asked)]
    called = [entry for entry in _entries() if alias in entry.aliases]
    if memory_bytes is not None and meant:
        return min(meant, key=lambda entry: abs(entry.spec.memory_bytes - memory_bytes))
    if found := [*called, *meant]:
        return found[0]
    known = [text for entry in _entries() for text in (entry.spec.name, *entry.aliases)]
    raise not_found("GPU", plain(name), known, gpus())


@cache
def _entries() -> Sequence[_Entry]:
    """In the file's order: where a name leaves open which, the first is meant."""
    return tuple(_entry(name, given) for name, given in read("gpus.json").items())


def _entry(name: str, given: dict[str, Any]) -> _Entry:
    aliases = tuple(given.pop("aliases"))
    form, memory_type = given.pop("form", ""), given.pop("memory_type", "")
    mig_slices = given.pop("mig_slices", MIG_SLICES)
    figures = {key: value for key, (value, _) in given.items()}
    sources = {key: source for key, (_, source) in given.items()}
    spec = GpuSpec(name, **figures, sources=MappingProxyType(sources))
    return _Entry(spec, parse(name), form, memory_type, mig_slices, aliases)
