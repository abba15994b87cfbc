"""What is assumed of a GPU that the catalogue does not know: by its driver, then its generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from modelium.catalog.gpunames import NameParts, parse
from modelium.catalog.gpus import MIG_SLICES, GpuSpec, gpu, mig_instance, variant
from modelium.errors import ProfileError
from modelium.units import GIB

SAME_MEMORY = 0.15
"""A driver's total may differ this much from the catalogue's (ECC, what the driver keeps); above
it, it is another GPU of that name."""
DATA_RATE = 2
"""Bits a pin and clock that NVML reports, for every kind of memory (1215 MHz on the 5120 bits of
an A100 are 1,555 GB/s, 6251 MHz on the 192 bits of an L4 300 GB/s)."""


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """What a driver tells of a GPU besides its name and memory; 0 where it does not."""

    compute_capability: tuple[int, int] = (0, 0)
    memory_bus_bits: int = 0
    memory_clock_hz: float = 0.0
    cores: int = 0
    """CUDA cores."""
    sm_clock_hz: float = 0.0
    """The highest."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What GPUs of one compute capability have in common."""

    since: tuple[int, int]
    """The lowest compute capability; the next generation's is the first that is not one."""
    name: str
    cores: int
    """CUDA cores of a multiprocessor."""
    flops: int
    """16-bit operations of a multiprocessor in a clock: dense, with FP32 accumulation."""
    geforce: float
    """What GeForce cards reach of that."""
    fp8: bool
    like: str
    """The GPU of the catalogue whose figures are taken where the driver tells nothing."""


GENERATIONS = (
    Generation((0, 0), "before Volta", 128, 256, 1.0, False, "t4-16g"),
    Generation((7, 0), "Volta", 64, 1024, 1.0, False, "v100-pcie-16g"),
    Generation((7, 5), "Turing", 64, 1024, 0.5, False, "t4-16g"),
    Generation((8, 0), "Ampere", 64, 2048, 1.0, False, "a30-24g"),
    Generation((8, 6), "Ampere", 128, 1024, 0.5, False, "a10-24g"),
    Generation((8, 9), "Ada", 128, 1024, 0.5, True, "l4-24g"),
    Generation((9, 0), "Hopper", 128, 4096, 1.0, True, "h100-pcie-80g"),
    Generation((10, 0), "Blackwell", 128, 8192, 1.0, True, "b200-180g"),
    Generation((12, 0), "Blackwell", 128, 1024, 0.5, True, "rtx-5090-32g"),
    Generation((12, 1), "Blackwell", 128, 1024, 0.5, True, "gb10-128g"),
    Generation((13, 0), "after Blackwell", 128, 8192, 1.0, True, "b200-180g"),
)
"""Oldest first. Operations by NVIDIA's architecture whitepapers: data-sheet peaks over
multiprocessors and boost clock (A100: 312e12 over 108 and 1.41 GHz; B200: 2250e12 over 148 and
1.85 GHz, rounded to a power of two)."""
CONFIGURED = "as configured"
UNKNOWN = "a10-24g"
"""Whose figures are taken where not even the generation is known."""


def kind_of(name: str) -> str:
    """The name that a kind of GPU goes by: the catalogue's, or the given one written like those."""
    try:
        return gpu(name).name
    except ProfileError:
        return parse(name).kind


def device_spec(name: str, memory_bytes: int, facts: DriverFacts = DriverFacts()) -> GpuSpec:
    """The GPU that a driver calls `name` and lists with `memory_bytes`; never an error.

    What the catalogue does not know is assumed, and `GpuSpec.note` says what.
    """
    said = parse(name)
    try:
        known = gpu(name, None if said.mig else memory_bytes)
    except ProfileError:
        return assumed(name, memory_bytes, facts)
    if not said.mig and abs(known.memory_bytes - memory_bytes) > SAME_MEMORY * known.memory_bytes:
        return assumed(name, memory_bytes, facts)
    return replace(known, memory_bytes=memory_bytes)


def assumed(
    name: str,
    memory_bytes: int,
    facts: DriverFacts = DriverFacts(),
    given: Mapping[str, float] = MappingProxyType({}),
) -> GpuSpec:
    """A GPU that is not in the catalogue; `given` figures, by their names in GpuSpec, go first.

    Where the driver tells nothing it is taken for a variant of the same model, or else for a GPU
    of its generation.
    """
    said = parse(name)
    generation = _generation(facts.compute_capability)
    like = variant(said) or gpu(generation.like if generation else UNKNOWN)
    taken = f"assumed as for {like.name}"
    figures = {
        "bandwidth_bytes_per_s": like.bandwidth_bytes_per_s,
        "bf16_flops": like.bf16_flops,
        "pcie_bytes_per_s": like.pcie_bytes_per_s,
    }
    sources = dict.fromkeys(figures, taken)
    if facts.memory_bus_bits and facts.memory_clock_hz:
        rate = facts.memory_bus_bits / 8 * DATA_RATE * facts.memory_clock_hz
        figures["bandwidth_bytes_per_s"] = rate
        sources["bandwidth_bytes_per_s"] = "by the driver"
    if generation and facts.cores and facts.sm_clock_hz:
        reached = generation.geforce if "geforce" in name.lower() else 1.0
        per_clock = facts.cores / generation.cores * generation.flops * reached
        figures["bf16_flops"] = per_clock * facts.sm_clock_hz
        major, minor = facts.compute_capability
        sources["bf16_flops"] = f"by cores and clock ({generation.name}, {major}.{minor})"
    if generation.fp8 if generation else like.fp8_flops:
        figures["fp8_flops"] = 2 * figures["bf16_flops"]
        sources["fp8_flops"] = "twice its 16-bit rate"
    spec = GpuSpec("", memory_bytes, **figures, sources=MappingProxyType(sources))
    return corrected(_part(spec, said) if said.mig else _whole(spec, said), given)


def _whole(spec: GpuSpec, said: NameParts) -> GpuSpec:
    """Named like the catalogue's GPUs, with its memory."""
    memory_gib = said.memory_gib or max(round(spec.memory_bytes / GIB), 1)
    return replace(spec, name=replace(said, memory_gib=memory_gib).kind)


def _part(spec: GpuSpec, said: NameParts) -> GpuSpec:
    """A MIG instance of `spec`'s memory; what the driver told is of the whole GPU."""
    of_slice = spec.memory_bytes // said.mig_slices * MIG_SLICES
    whole_bytes = said.memory_gib * GIB if said.memory_gib else of_slice
    whole = replace(spec, name=replace(said, mig="").kind, memory_bytes=whole_bytes)
    return replace(mig_instance(whole, said), memory_bytes=spec.memory_bytes)


def corrected(spec: GpuSpec, given: Mapping[str, float]) -> GpuSpec:
    """The same GPU with some figures as a configuration gives them, by their names in GpuSpec."""
    if not given:
        return spec
    sources = {**spec.sources, **dict.fromkeys(given, CONFIGURED)}
    return replace(spec, **given, sources=MappingProxyType(sources))  # type: ignore[arg-type]


def note(spec: GpuSpec) -> str:
    """What to tell people of a GPU that is not in the catalogue: its figures and their sources.

    Empty for one that the configuration describes in full, and for one of the catalogue.
    """
    told = {
        "bandwidth_bytes_per_s": f"{spec.bandwidth_bytes_per_s / 1e9:,.0f} GB/s",
        "bf16_flops": f"{spec.bf16_flops / 1e12:,.0f} TFLOPS",
        "pcie_bytes_per_s": f"PCIe {spec.pcie_bytes_per_s / 1e9:,.0f} GB/s",
    }
    sources = {key: spec.sources.get(key, CONFIGURED) for key in told}
    if _is_known(spec.name) or set(sources.values()) == {CONFIGURED}:
        return ""
    figures: dict[str, list[str]] = {}
    for key, text in told.items():
        figures.setdefault(sources[key], []).append(text)
    words = "; ".join(f"{', '.join(texts)} {source}" for source, texts in figures.items())
    return f"{spec.name} is not in the catalogue: {words} (cluster.kinds says better)"


def _is_known(name: str) -> bool:
    try:
        return gpu(name).name == name
    except ProfileError:
        return False


def _generation(compute_capability: tuple[int, int]) -> Generation | None:
    """The latest that is not later; None where the driver does not tell."""
    if compute_capability == (0, 0):
        return None
    return [one for one in GENERATIONS if one.since <= compute_capability][-1]
