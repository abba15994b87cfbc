"""The section `cluster` as nodes, GPUs and links."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modelium import catalog
from modelium.catalog import GpuSpec
from modelium.catalog.fleet import HOST_TO_GPU_MEMORY
from modelium.catalog.gpunames import parse
from modelium.config import schema
from modelium.config.planning.devices import GpuName, find, find_all
from modelium.config.values import build, said
from modelium.control.costs import Links
from modelium.core import Gpu, Node
from modelium.errors import SLIP, ConfigError, ProfileError, did_you_mean
from modelium.units import GIB

PCIE_REACHED = 25 / 32
"""Of a link's data-sheet bandwidth, by pinned copies (PCIe 4: 25 of 32 GB/s)."""
_FIGURES = {
    "memory": "memory_bytes",
    "bandwidth": "bandwidth_bytes_per_s",
    "flops": "bf16_flops",
    "fp8_flops": "fp8_flops",
    "pcie": "pcie_bytes_per_s",
    "nvlink": "nvlink_bytes_per_s",
}
"""Keys of `cluster.kinds`, and what they are in the catalogue."""


@dataclass(frozen=True)
class Hardware:
    """What the cluster is made of."""

    nodes: tuple[Node, ...]
    gpus: tuple[Gpu, ...]
    links: Mapping[str, Links]
    """By node."""
    share: float
    """Of each GPU's memory that models may use."""
    specs: Mapping[str, GpuSpec]
    """What each GPU is, by its id; memory is its own."""
    names: tuple[GpuName, ...]
    """Of the GPUs, in their order."""
    devices: Mapping[str, int]
    """Where each GPU is in the inventory."""
    left_out: tuple[GpuName, ...] = ()
    """GPUs that are there but not to be used."""

    def only(self, ids: Collection[str]) -> Hardware:
        """The same with these GPUs alone."""
        return dataclasses.replace(
            self,
            gpus=tuple(gpu for gpu in self.gpus if gpu.id in ids),
            names=tuple(name for name in self.names if name.id in ids),
            specs={gpu: spec for gpu, spec in self.specs.items() if gpu in ids},
        )

    def allowed(self, words: Sequence[str]) -> Hardware:
        """The same with the GPUs that `words` name alone. Raises ConfigError if one names none."""
        named: set[str] = set()
        for word in words:
            found = {name.id for name in find(word, [*self.names, *self.left_out])}
            if not (used := found & {name.id for name in self.names}):
                raise ConfigError(f"{word!r} is a GPU that cluster.use leaves out")
            named |= used
        return self.only(named)

    def whole(self) -> Hardware:
        """The same without MIG instances."""
        return self.only({name.id for name in self.names if not name.parent})

    def kinds(self) -> list[str]:
        """The kinds of GPUs, most numerous first."""
        return [kind for kind, _ in Counter(gpu.kind for gpu in self.gpus).most_common()]

    def by_kind(self) -> dict[str, GpuSpec]:
        """What a GPU of each kind can do."""
        found: dict[str, GpuSpec] = {}
        for gpu in self.gpus:
            found.setdefault(gpu.kind, self.specs[gpu.id])
        return found

    @cached_property
    def sizes(self) -> tuple[GpuSpec, ...]:
        """The GPUs that differ in kind or memory, most numerous first."""
        return tuple(spec for spec, _ in Counter(self.specs.values()).most_common())

    def most_per_node(self, spec: GpuSpec) -> int:
        """GPUs like this one, or with more memory, on the node that has most of them.

        MIG instances cannot work together.
        """
        counts = dict.fromkeys((node.id for node in self.nodes), 0)
        for gpu in self.gpus:
            there = self.specs[gpu.id]
            counts[gpu.node] += there.name == spec.name and there.memory_bytes >= spec.memory_bytes
        return min(max(counts.values()), 1 if spec.works_alone else len(self.gpus))

    def notes(self) -> list[str]:
        """What had to be assumed of GPUs that are not in the catalogue."""
        notes = {kind: catalog.note(spec) for kind, spec in self.by_kind().items()}
        return [
            note + did_you_mean(kind, catalog.gpus(), SLIP) for kind, note in notes.items() if note
        ]


def hardware(cluster: schema.Cluster, share: float) -> Hardware:
    """The cluster of a configuration; `share` of each GPU's memory may be used.

    Raises ConfigError for a GPU of which not even the memory is known.
    """
    entries = cluster.nodes or _nodes(cluster.gpus)
    names = [entry.name or f"node{i}" for i, entry in enumerate(entries)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"cluster.nodes: {min(twice)!r} is there twice")
    nodes: list[Node] = []
    gpus: list[Gpu] = []
    found: list[GpuName] = []
    devices: dict[str, int] = {}
    specs: dict[str, GpuSpec] = {}
    links: dict[str, Links] = {}
    for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
        here: list[GpuSpec] = []
        for group in entry.gpus:
            try:
                spec = gpu_spec(group.kind, group.memory, cluster.kinds)
            except ProfileError as error:
                where = f"cluster.nodes[{i}].gpus" if cluster.nodes else "cluster.gpus"
                raise ConfigError(f"{where}: {error}") from None
            for _ in range(group.count):
                gpu = _name(group, len(found))
                found.append(gpu)
                if isinstance(group, schema.FoundGpu):
                    devices[gpu.id] = group.device
                here.append(spec)
                specs[gpu.id] = spec
                gpus.append(Gpu(gpu.id, name, int(spec.memory_bytes * share), spec.name))
        ram = _first(entry.host_memory, cluster.host_memory)
        default_ram = round(HOST_TO_GPU_MEMORY * sum(spec.memory_bytes for spec in here))
        nodes.append(Node(name, default_ram if ram is None else ram))
        links[name] = _links(cluster.links, entry.links, here)
    used = _used(cluster, found)
    gpus = [gpu for gpu in gpus if gpu.id in used]
    with_gpus = {gpu.node for gpu in gpus}
    return Hardware(
        nodes=tuple(node for node in nodes if node.id in with_gpus),
        gpus=tuple(gpus),
        links=links,
        share=share,
        specs={gpu.id: specs[gpu.id] for gpu in gpus},
        names=tuple(gpu for gpu in found if gpu.id in used),
        devices=devices or {gpu.id: place for place, gpu in enumerate(gpus)},
        left_out=tuple(gpu for gpu in found if gpu.id not in used),
    )


def _name(group: schema.GpuGroup, place: int) -> GpuName:
    if isinstance(group, schema.FoundGpu):
        number, parent = group.number, group.parent
    else:
        number, parent = str(place), ""
    return GpuName(f"gpu{number}", number, group.kind, group.uuid or "", parent)


def _used(cluster: schema.Cluster, found: Sequence[GpuName]) -> set[str]:
    if cluster.use is None or not found:
        return {gpu.id for gpu in found}
    try:
        return {gpu.id for gpu in find_all(cluster.use, found)}
    except ConfigError as error:
        raise ConfigError(f"cluster.use: {error}") from None


def gpu_spec(
    kind: str, memory_bytes: int | None, kinds: Mapping[str, schema.GpuFigures]
) -> GpuSpec:
    """A GPU by its name, its own memory if that is given, and what `cluster.kinds` says of it.

    Raises ProfileError for one that is not in the catalogue if nothing says how much memory it has.
    """
    given = figures(kind, kinds)
    if memory_bytes is not None:
        given["memory_bytes"] = memory_bytes
    try:
        return catalog.corrected(catalog.gpu(kind), given)
    except ProfileError as error:
        named_gib = parse(kind).size_gib
        memory_bytes = int(given.pop("memory_bytes", 0)) or (named_gib or 0) * GIB
        if not memory_bytes:
            raise ProfileError(
                f"{error} Another one needs its memory: {kind}-24g, or"
                f" cluster: {{kinds: {{{kind}: {{memory: 24GiB}}}}}}"
            ) from None
    spec = catalog.assumed(kind, memory_bytes, given=given)
    return dataclasses.replace(spec, name=kind)


def figures(kind: str, kinds: Mapping[str, schema.GpuFigures]) -> dict[str, float]:
    """What `cluster.kinds` says of a kind of GPU, by the names of the catalogue's figures.

    A name that the catalogue does not know and that leaves form or memory open is for all GPUs
    that it covers; the most exact goes first.
    """
    found: dict[str, float] = {}
    for written in sorted((name for name in kinds if _is_for(name, kind)), key=len):
        found |= {_FIGURES[key]: value for key, value in said(kinds[written]).items()}
    return found


def _is_for(written: str, kind: str) -> bool:
    """A name of the catalogue is for that GPU alone."""
    known = catalog.gpus()
    if written in known or kind in known:
        return written == kind
    return parse(written).covers(parse(kind))


def with_listed(cluster: schema.Cluster, listed: Sequence[GpuSpec]) -> schema.Cluster:
    """The cluster that also says under `kinds` what a driver told of GPUs that it lists.

    That is needed for those which the catalogue does not know; what it says already goes first.
    """
    kinds = dict(cluster.kinds)
    for spec in listed:
        if catalog.note(spec):
            spec = catalog.corrected(spec, figures(spec.name, cluster.kinds))
            told = {key: getattr(spec, figure) for key, figure in _FIGURES.items()}
            kinds[spec.name] = schema.GpuFigures(**told)
    return dataclasses.replace(cluster, kinds=kinds)


def on_fleet(config: schema.Config, fleet: str) -> schema.Config:
    """The configuration on other GPUs, such as 4xh100-80g. Raises ModeliumError."""
    gpus = [schema.PlacedGroup(**group) for group in schema.placed(fleet)]
    for group in gpus:
        gpu_spec(group.kind, None, config.cluster.kinds)
    cluster = dataclasses.replace(config.cluster, gpus=gpus, nodes=[], use=None)
    return dataclasses.replace(config, cluster=cluster)


def _nodes(groups: Sequence[schema.PlacedGroup]) -> list[schema.NodeEntry]:
    """The groups of `cluster.gpus`, gathered by node."""
    by_node: dict[str, list[schema.GpuGroup]] = {}
    for group in groups:
        by_node.setdefault(group.node, []).append(group)
    return [schema.NodeEntry(name=n, gpus=g) for n, g in by_node.items()]


def _links(all_nodes: schema.Links, node: schema.Links, gpus: Sequence[GpuSpec]) -> Links:
    """A node's own links over those of all nodes over what its slowest GPU's slot reaches."""
    slot = min((spec.pcie_bytes_per_s for spec in gpus), default=None)
    base = Links()
    if slot is not None:
        base = dataclasses.replace(base, pcie_bytes_per_s=PCIE_REACHED * slot)
    return build(build(base, all_nodes), node)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
