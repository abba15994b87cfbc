"""Reading a fleet of GPUs from a few characters: "4xh100-80g", "2x8xh100-80g", "8xa100+4xl4"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelium.catalog.generations import kind_of
from modelium.catalog.gpus import gpu
from modelium.core import Gpu, Node
from modelium.errors import ConfigError

DEFAULT_SHARE = 0.9
"""Of a GPU's memory that Modelium may use (vLLM's long-time `gpu_memory_utilization`)."""
HOST_TO_GPU_MEMORY = 2.0
"""Host RAM for weights, as a multiple of the node's GPU memory; servers have 3 to 4 times
(DGX H100: 2 TB to 640 GB, p4d.24xlarge: 1152 GiB to 320 GB), of which others need some."""
_MOST_GPUS = 100_000
_GROUP = re.compile(r"(?:(?:(\d{1,6})\s*x\s*)?(\d{1,6})\s*x\s*)?([a-z].*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes and the GPUs in them."""

    nodes: tuple[Node, ...]
    gpus: tuple[Gpu, ...]


def parse_fleet(text: str, *, share: float = DEFAULT_SHARE, host_bytes: int | None = None) -> Fleet:
    """Read a fleet: groups joined by "+", each "[nodes x] GPUs x kind", one node unless stated.

    `share` of each GPU's memory is usable; `host_bytes` is each node's RAM for weights (default:
    `HOST_TO_GPU_MEMORY` times its GPU memory). Nodes are node0, node1, …, GPUs gpu0, gpu1, ….
    Raises ConfigError for text of another form and ProfileError for an unknown GPU.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share of GPU memory is {share}, expected more than 0 and at most 1")
    nodes: list[Node] = []
    gpus: list[Gpu] = []
    for count, kind in fleet_nodes(text):
        spec = gpu(kind)
        ram = round(HOST_TO_GPU_MEMORY * count * spec.memory_bytes)
        node = Node(f"node{len(nodes)}", ram if host_bytes is None else host_bytes)
        usable = int(spec.memory_bytes * share)
        first = len(gpus)
        gpus += [Gpu(f"gpu{first + i}", node.id, usable, spec.name) for i in range(count)]
        nodes.append(node)
    return Fleet(tuple(nodes), tuple(gpus))


def fleet_nodes(text: str) -> list[tuple[int, str]]:
    """The number and the kind of each node's GPUs, known or not. Raises ConfigError."""
    sizes: list[tuple[int, str]] = []
    for group in text.split("+"):
        match = _GROUP.fullmatch(group.strip())
        if not match:
            raise ConfigError(f"{text!r} is not a fleet of GPUs such as 4xh100-80g or 2x8xh100-80g")
        nodes, gpus = (int(number or 1) for number in match.group(1, 2))
        if not 0 < nodes * gpus <= _MOST_GPUS:
            raise ConfigError(f"{text!r} has {nodes * gpus} GPUs, expected 1 to {_MOST_GPUS}")
        sizes += [(gpus, kind_of(match.group(3)))] * nodes
    return sizes
