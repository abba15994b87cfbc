"""Packing copies onto GPUs by decreasing size: what `static`, `ffd` and `bfd` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

from modelium.core import ClusterState, Model, Phase
from modelium.policies.toolkit.eviction import least_copies
from modelium.policies.toolkit.placement import Place, choose

Packing = dict[str, list[tuple[str, ...]]]
"""A `Target`."""


class Item(NamedTuple):
    """One copy to be packed."""

    model: Model
    share: float
    """Of each of its GPUs' time."""
    order: tuple[bool, bool, int, float]
    """The lowest is packed first."""


def pack(
    state: ClusterState, rates_per_s: Mapping[str, float], place: Place, rho_max: float
) -> Packing:
    """Pack copies where memory fits and no GPU's load exceeds `rho_max`.

    A model with load rho gets ceil(rho / rho_max) copies. First come copies that must be there,
    then the most requested models for which all GPUs together have room, then the others; among
    each, tensor-parallel ones first, then by decreasing size or load, whichever is the larger share
    of a GPU. Copies that are in place already stay there; further ones prefer other nodes.
    """
    room = {gpu: spec.memory_bytes for gpu, spec in state.gpus.items()}
    load = dict.fromkeys(state.gpus, 0.0)
    packing: Packing = {}
    for item in sorted(_items(state, rates_per_s, rho_max), key=lambda item: item.order):
        gpus = _site(state, item, room, load, packing.get(item.model.name, []), place, rho_max)
        if gpus is None:
            continue
        packing.setdefault(item.model.name, []).append(gpus)
        for gpu in gpus:
            room[gpu] -= item.model.bytes_per_gpu()
            load[gpu] += item.share
    return packing


def _items(state: ClusterState, rates_per_s: Mapping[str, float], rho_max: float) -> list[Item]:
    largest = max((gpu.memory_bytes for gpu in state.gpus.values()), default=0)
    total = sum(gpu.memory_bytes for gpu in state.gpus.values())
    asked = any(rates_per_s.values())
    items = []
    for model in sorted(state.models.values(), key=lambda m: -rates_per_s.get(m.name, 0.0)):
        least = least_copies(model)
        rho = _load(state, model, rates_per_s.get(model.name, 0.0))
        wanted = max(ceil(rho / rho_max), int(not asked), least)
        copies = min(wanted, model.max_replicas)
        for k in range(copies):
            total -= model.bytes_per_gpu() * model.gpus
            share = rho / copies
            size = max(model.bytes_per_gpu() / max(largest, 1), share)
            items.append(Item(model, share, (k >= least, total < 0, -model.gpus, -size)))
    return items


def _load(state: ClusterState, model: Model, rate_per_s: float) -> float:
    """GPUs' worth of time that this request rate takes of each GPU of a single copy."""
    asked = state.demand[model.name]
    if not rate_per_s or not asked.arrivals or not state.gpus:
        return 0.0
    prompt, output = asked.prompt_tokens / asked.arrivals, asked.output_tokens / asked.arrivals
    gpu = next(filter(model.may_use, state.gpus), next(iter(state.gpus)))
    return rate_per_s * state.costs.work_s(model.name, gpu, prompt, output)


def _site(
    state: ClusterState,
    item: Item,
    room: Mapping[str, int],
    load: Mapping[str, float],
    others: list[tuple[str, ...]],
    place: Place,
    rho_max: float,
) -> tuple[str, ...] | None:
    need = item.model.bytes_per_gpu()
    # A copy on GPUs of its own may be as busy as it gets.
    open_ = {
        gpu: free
        for gpu, free in room.items()
        if (load[gpu] + item.share <= rho_max or not load[gpu])
        and not any(gpu in gpus for gpus in others)
        and item.model.may_use(gpu)
    }
    for copy in state.instances_of(item.model.name):
        here = copy.phase is not Phase.LEAVING and copy.gpus not in others
        if here and all(open_.get(gpu, -1) >= need for gpu in copy.gpus):
            return copy.gpus
    used = {state.gpus[gpus[0]].node for gpus in others}
    apart = {gpu: free for gpu, free in open_.items() if state.gpus[gpu].node not in used}
    gpus = choose(state, apart, need, item.model.gpus, place)
    if gpus or item.model.spread:
        return gpus
    return choose(state, open_, need, item.model.gpus, place)
