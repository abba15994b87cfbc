"""The section `cluster` as nodes, GPUs and links."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelium.catalog import gpu as gpu_spec
from modelium.catalog.fleet import HOST_TO_GPU_MEMORY
from modelium.config import schema
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
    links: dict[str, Links] = {}
    for name, entry in zip(names, entries, strict=True):
        sizes = [(group.kind, _memory(group)) for group in entry.gpus for _ in range(group.count)]
        first = len(gpus)
        gpus += [
            Gpu(f"gpu{first + i}", name, int(size * share), kind)
            for i, (kind, size) in enumerate(sizes)
        ]
        ram = _first(entry.host_memory, cluster.host_memory)
        default_ram = round(HOST_TO_GPU_MEMORY * sum(size for _, size in sizes))
        nodes.append(Node(name, default_ram if ram is None else ram))
        links[name] = _links(cluster.links, entry.links, [kind for kind, _ in sizes])
    return Hardware(tuple(nodes), tuple(gpus), links, share)


def on_fleet(config: schema.Config, fleet: str) -> schema.Config:
    """The configuration on other GPUs, such as 4xh100-80g. Raises CatalogError."""
    gpus = [schema.PlacedGroup(**group) for group in schema.placed(fleet)]
    cluster = dataclasses.replace(config.cluster, gpus=gpus, nodes=[])
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
