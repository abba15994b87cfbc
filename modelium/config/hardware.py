"""The section `cluster` as nodes, GPUs and links."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelium.catalog import gpu as gpu_spec
from modelium.catalog.fleet import HOST_TO_GPU_MEMORY
from modelium.config import schema
from modelium.config.devices import GpuName, find_all
from modelium.config.values import build
from modelium.core import Gpu, Node
from modelium.costs import Links
from modelium.errors import ConfigError

PCIE_REACHED = 25 / 32
"""Of a link's data-sheet bandwidth, by pinned copies (PCIe 4: 25 of 32 GB/s)."""


@dataclass(frozen=True)
class Hardware:
    """What the cluster is made of."""

    nodes: tuple[Node, ...]
    gpus: tuple[Gpu, ...]
    links: Mapping[str, Links]
    """By node."""
    share: float
    """Of each GPU's memory that models may use."""
    names: tuple[GpuName, ...]
    """Of the GPUs, in their order."""
    devices: Mapping[str, int]
    """Where each GPU is in the inventory."""
    left_out: tuple[GpuName, ...] = ()
    """GPUs that are there but not to be used."""

    def most_per_node(self, kind: str) -> int:
        """GPUs of `kind` on the node that has most of them."""
        counts = dict.fromkeys((node.id for node in self.nodes), 0)
        for gpu in self.gpus:
            counts[gpu.node] += gpu.kind == kind
        return max(counts.values())

    def kinds(self) -> list[str]:
        """The kinds of GPUs, most numerous first."""
        all_kinds = [gpu.kind for gpu in self.gpus]
        return sorted(dict.fromkeys(all_kinds), key=lambda kind: -all_kinds.count(kind))


def hardware(cluster: schema.Cluster, share: float) -> Hardware:
    """The cluster of a configuration; `share` of each GPU's memory may be used."""
    entries = cluster.nodes or _nodes(cluster.gpus)
    names = [entry.name or f"node{i}" for i, entry in enumerate(entries)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"cluster.nodes: {min(twice)!r} is there twice")
    nodes: list[Node] = []
    gpus: list[Gpu] = []
    found: list[GpuName] = []
    devices: dict[str, int] = {}
    links: dict[str, Links] = {}
    for name, entry in zip(names, entries, strict=True):
        sizes = []
        for group in entry.gpus:
            for _ in range(group.count):
                gpu = _name(group, len(found))
                found.append(gpu)
                if isinstance(group, schema.FoundGpu):
                    devices[gpu.id] = group.device
                sizes.append((group.kind, size := _memory(group)))
                gpus.append(Gpu(gpu.id, name, int(size * share), group.kind))
        ram = _first(entry.host_memory, cluster.host_memory)
        default_ram = round(HOST_TO_GPU_MEMORY * sum(size for _, size in sizes))
        nodes.append(Node(name, default_ram if ram is None else ram))
        links[name] = _links(cluster.links, entry.links, [kind for kind, _ in sizes])
    used = _used(cluster, found)
    gpus = [gpu for gpu in gpus if gpu.id in used]
    with_gpus = {gpu.node for gpu in gpus}
    return Hardware(
        nodes=tuple(node for node in nodes if node.id in with_gpus),
        gpus=tuple(gpus),
        links=links,
        share=share,
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


def on_fleet(config: schema.Config, fleet: str) -> schema.Config:
    """The configuration on other GPUs, such as 4xh100-80g. Raises CatalogError."""
    gpus = [schema.PlacedGroup(**group) for group in schema.placed(fleet)]
    cluster = dataclasses.replace(config.cluster, gpus=gpus, nodes=[], use=None)
    return dataclasses.replace(config, cluster=cluster)


def _nodes(groups: Sequence[schema.PlacedGroup]) -> list[schema.NodeEntry]:
    """The groups of `cluster.gpus`, gathered by node."""
    by_node: dict[str, list[schema.GpuGroup]] = {}
    for group in groups:
        by_node.setdefault(group.node, []).append(group)
    return [schema.NodeEntry(name=n, gpus=g) for n, g in by_node.items()]


def _memory(group: schema.GpuGroup) -> int:
    return group.memory or gpu_spec(group.kind).memory_bytes


def _links(all_nodes: schema.Links, node: schema.Links, kinds: Sequence[str]) -> Links:
    """A node's own links over those of all nodes over what its slowest GPU's slot reaches."""
    slot = min(gpu_spec(kind).pcie_bytes_per_s for kind in kinds)
    base = dataclasses.replace(Links(), pcie_bytes_per_s=PCIE_REACHED * slot)
    return build(build(base, all_nodes), node)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
