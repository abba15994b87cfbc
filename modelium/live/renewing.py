"""Replace the copies of a model that is to be served otherwise than they were started.

A new copy is loaded beside the old one, on its GPUs or on others, and takes its place when it is
ready. Where no GPU has room for both, the old one finishes its requests and goes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from modelium.core import Action, Phase
from modelium.rules import may_replace
from modelium.state import COMING, Copy

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

REASON = "its settings changed"
Follow = Callable[[Callable[[], Action]], Awaitable[str]]
"""Starts an action and waits for its end; gives the error, or ""."""


async def renew(cluster: LiveCluster, model: str, follow: Follow) -> None:
    """See all present copies off. A copy whose successor does not load serves on."""
    state, failed = cluster.state, ""
    old = [copy.id for copy in state.instances_of(model)]
    was_ready = False
    for name in old:
        while not failed and name in state.instances and not state.copy(name).stuck:
            copy, changed = state.copy(name), cluster.changed
            if copy.phase in COMING:
                was_ready = True
                cluster.cancel(copy, REASON)
            elif copy.phase is Phase.READY:
                was_ready = True
                failed = await _replace(cluster, copy, follow)
            elif copy.phase is Phase.ASLEEP:
                failed = await follow(lambda copy=copy: cluster.dismiss(copy, REASON))  # type: ignore[misc]
            if name in state.instances and not failed:
                await changed.wait()
    if failed:
        cluster.tell_news("reload-refused", why=f"{model} is served as before: {failed}")
    elif was_ready and model in state.models and not state.instances_of(model):
        cluster.reception.wish(model, REASON)


async def _replace(cluster: LiveCluster, copy: Copy, follow: Follow) -> str:
    gpus = next(_places(cluster, copy), None)
    if gpus is None:
        return await follow(lambda: cluster.dismiss(copy, REASON))
    return await follow(lambda: cluster.replace(copy, gpus, REASON))


def _places(cluster: LiveCluster, copy: Copy) -> Iterator[tuple[str, ...]]:
    """GPUs on which a new copy may be loaded beside the old one, the best first."""
    state, count = cluster.state, cluster.state.models[copy.model].gpus
    rooms = sorted(state.rooms().items(), key=lambda item: -item[1])
    others = (
        tuple([gpu for gpu, _ in rooms if state.gpus[gpu].node == node][:count])
        for node in state.nodes
    )
    for gpus in (copy.gpus, *others):
        if not may_replace(cluster.state, copy, gpus, cluster.state.limits):
            yield gpus
