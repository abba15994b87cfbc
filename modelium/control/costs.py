"""How long a load, wake, sleep or unload takes, by stages (both worlds plan with these figures).

Defaults are for vLLM and come from the published measurements named beside each; every one can be
set in the configuration. Weights move at the speed of the slowest link on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from modelium.core import ClusterState, Model, Tier


@dataclass(frozen=True, slots=True)
class Stages:
    """The parts of a transition that are not the moving of weights, for one model."""

    process_s: float = 6.0
    """Start of the engine's process and imports (MLSys'26 six-step study of vLLM: CPU-bound)."""
    tokenizer_s: float = 0.5
    compile_s: float = 8.0
    """torch.compile from a warm cache, as after any earlier load on the same node."""
    first_compile_s: float = 25.0
    """torch.compile at the first load on a node."""
    profile_s: float = 2.0
    """Sizing of the KV pool."""
    graphs_s: float = 4.0
    """Capture of CUDA graphs."""
    wake_s: tuple[float, float] = (0.1, 0.3)
    """Fixed part of a wake from level 1 and 2 (vLLM sleep-mode post: 0.26-0.82 s, 0.85-2.58 s)."""
    sleep_s: tuple[float, float] = (0.1, 0.3)
    unload_s: float = 1.0
    """Exit of the process until its memory is seen free (0.1-2 s)."""

    @property
    def before_s(self) -> float:
        """What precedes the weights."""
        return self.process_s + self.tokenizer_s

    def after_s(self, first: bool) -> float:
        """What follows the weights; `first` says that nothing of this model is compiled there."""
        return (self.first_compile_s if first else self.compile_s) + self.profile_s + self.graphs_s


INSTANT = Stages(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 0.0)
"""No fixed costs at all: for closed forms, and for users who give one load time themselves."""


@dataclass(frozen=True, slots=True)
class Links:
    """Bandwidths of one node, in bytes per second; concurrent transfers share them."""

    disk_bytes_per_s: float = 6e9
    """One NVMe drive."""
    pcie_bytes_per_s: float = 25e9
    """Pinned host memory to one GPU, PCIe 4 (50e9: PCIe 5)."""
    gpus_per_switch: int = 2
    """GPUs behind one PCIe switch, which share `pcie_bytes_per_s` (Torpor, arXiv 2306.03622)."""
    loader_bytes_per_s: float = 5e9
    """What the engine's loader reaches per GPU at best (safetensors: 3-5 GB/s; ServerlessLLM)."""


class LoadFacts(Protocol):
    """Where the figures come from: the configuration, corrected by what was measured."""

    def stages(self, model: str) -> Stages: ...
    def links(self, node: str) -> Links: ...
    def compiled(self, model: str, node: str) -> bool:
        """An earlier load left its compile cache on this node."""


Work = Callable[[Model, str, float, float], float]
"""GPU-seconds of a request (model, GPU kind, prompt tokens, output tokens)."""


@dataclass(slots=True)
class ConfiguredFacts:
    """Figures from the configuration alone; loads add to `seen`."""

    by_model: dict[str, Stages] = field(default_factory=dict)
    by_node: dict[str, Links] = field(default_factory=dict)
    default_stages: Stages = Stages()
    default_links: Links = Links()
    seen: set[tuple[str, str]] = field(default_factory=set)

    def stages(self, model: str) -> Stages:
        """The stages of `model`."""
        return self.by_model.get(model, self.default_stages)

    def links(self, node: str) -> Links:
        """The links of `node`."""
        return self.by_node.get(node, self.default_links)

    def compiled(self, model: str, node: str) -> bool:
        """An earlier load left its compile cache on this node."""
        return (model, node) in self.seen


def weights_rate(links: Links, tier: Tier, gpus: int) -> float:
    """Bytes per second at which weights reach `gpus` GPUs from `tier` on otherwise idle links."""
    rate = gpus * min(links.pcie_bytes_per_s, links.loader_bytes_per_s)
    return rate if tier is not Tier.DISK else min(rate, links.disk_bytes_per_s)


class StagedCosts:
    """`Costs` by stages: fixed parts from `LoadFacts`, weights over the slowest link."""

    def __init__(self, state: ClusterState, facts: LoadFacts, work: Work) -> None:
        self._state = state
        self._facts = facts
        self._work = work

    def for_state(self, state: ClusterState) -> StagedCosts:
        """The same figures read against another state (a snapshot)."""
        return StagedCosts(state, self._facts, self._work)

    def load_s(self, model: str, gpus: tuple[str, ...]) -> float:
        """Seconds to load `model` on `gpus` from its present tier, on otherwise idle links."""
        node = self._state.gpus[gpus[0]].node
        stages, links = self._facts.stages(model), self._facts.links(node)
        tier = self._state.source_tier(model, node)
        size = self._state.models[model].weights_bytes
        first = not self._facts.compiled(model, node)
        moving = size / weights_rate(links, tier, len(gpus))
        return stages.before_s + moving + stages.after_s(first)

    def wake_s(self, instance: str) -> float:
        """Seconds until a sleeping instance is ready, on otherwise idle links."""
        copy = self._state.instances[instance]
        stages, links = self._facts.stages(copy.model), self._facts.links(self._node(instance))
        size = self._state.models[copy.model].weights_bytes
        if copy.sleep_level == 1:
            return stages.wake_s[0] + size / (len(copy.gpus) * links.pcie_bytes_per_s)
        tier = self._state.source_tier(copy.model, self._node(instance))
        return stages.wake_s[1] + size / weights_rate(links, tier, len(copy.gpus))

    def sleep_s(self, instance: str, level: int) -> float:
        """Seconds until a sleeping instance's memory is free."""
        copy = self._state.instances[instance]
        fixed = self._facts.stages(copy.model).sleep_s[level - 1]
        if level == 2:
            return fixed
        links = self._facts.links(self._node(instance))
        size = self._state.models[copy.model].weights_bytes
        return fixed + size / (len(copy.gpus) * links.pcie_bytes_per_s)

    def unload_s(self, instance: str) -> float:
        """Seconds until an unloaded instance's memory is free."""
        return self._facts.stages(self._state.instances[instance].model).unload_s

    def work_s(self, model: str, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that one request takes of one of the copy's GPUs at a good batch size."""
        kind = self._state.gpus[gpu].kind
        return self._work(self._state.models[model], kind, prompt_tokens, output_tokens)

    def _node(self, instance: str) -> str:
        return self._state.gpus[self._state.instances[instance].gpus[0]].node
