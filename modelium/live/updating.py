"""Bring a model's copies up to date with its files, without a gap where there is room.

Each copy that was loaded from older files is replaced: a new one is loaded on the same GPUs if they
hold both, else on others that have room, and the old one serves until the new one is ready, then
finishes its requests and goes. Where no GPU has room, the old one goes first, and requests wait.
Copies of one model are replaced one after another: if a new one cannot be loaded, the others stay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from modelium.core import Action, Load, Phase
from modelium.errors import ModeliumError
from modelium.live.seats import RefusedError
from modelium.rules import may_replace
from modelium.state import COMING, Copy

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

CONFLICT, FAILED = 409, 503
Follow = Callable[[Callable[[], Action]], Awaitable[str]]
"""Starts an action and waits for its end; gives the error, or ""."""


async def update(cluster: LiveCluster, model: str, follow: Follow) -> list[str]:
    """Replace what is outdated; says what was done. Raises RefusedError: 409, 503."""
    try:
        await cluster.files.settle(model)
    except ModeliumError as error:
        raise RefusedError(CONFLICT, f"{model} is not updated: {error}") from None
    cluster.files.drop_sleepers(model)
    done = []
    while copy := _outdated(cluster, model):
        done.append(await _replace(cluster, copy, follow))
    return done or [f"{model} is up to date"]


def _outdated(cluster: LiveCluster, model: str) -> Copy | None:
    """A ready copy of older files."""
    state = cluster.state
    copies = [state.copy(one.id) for one in state.instances_of(model)]
    ready = (copy for copy in copies if copy.phase is Phase.READY)
    return next((copy for copy in ready if cluster.files.outdated(copy)), None)


async def _replace(cluster: LiveCluster, copy: Copy, follow: Follow) -> str:
    reason = f"update: {cluster.files.outdated(copy)}"
    gpus = next(_places(cluster, copy), None)
    if gpus is None:
        return await _drain_first(cluster, copy, reason, follow)
    if error := await follow(lambda: cluster.replace(copy, gpus, reason)):
        raise RefusedError(FAILED, f"{copy.id} serves on: its new version does not load: {error}")
    return f"{copy.id} was replaced on {', '.join(gpus)} without a gap"


async def _drain_first(cluster: LiveCluster, copy: Copy, reason: str, follow: Follow) -> str:
    model, gpus = copy.model, copy.gpus
    cluster.tell_news(
        "files", model=model, why=f"no GPU has room for a second copy: {copy.id} goes first"
    )
    if error := await follow(lambda: cluster.dismiss(copy, reason)):
        raise RefusedError(CONFLICT, error)
    told = f"{copy.id} went first, since no GPU has room for a second copy"
    if _here(cluster, model):
        return told  # a waiting request has had it loaded meanwhile
    error = await follow(lambda: _load(cluster, model, gpus, reason))
    if error and not _here(cluster, model):
        raise RefusedError(FAILED, f"the new version of {model} does not load: {error}")
    return told


def _here(cluster: LiveCluster, model: str) -> bool:
    copies = cluster.state.instances_of(model)
    return any(one.phase in (*COMING, Phase.READY) for one in copies)


def _load(cluster: LiveCluster, model: str, gpus: tuple[str, ...], reason: str) -> Load:
    action = Load(model, gpus, reason)
    cluster.start(action)
    return action


def _places(cluster: LiveCluster, copy: Copy) -> Iterator[tuple[str, ...]]:
    """GPUs on which a new copy may be loaded beside the old one, the best first."""
    state = cluster.state
    for gpus in (copy.gpus, *_others(cluster, copy)):
        if not may_replace(state, copy, gpus, state.limits):
            yield gpus


def _others(cluster: LiveCluster, copy: Copy) -> Iterator[tuple[str, ...]]:
    """On each node the GPUs with the most room."""
    state, count = cluster.state, len(copy.gpus)
    rooms = sorted(state.rooms().items(), key=lambda item: -item[1])
    for node in state.nodes:
        here = [gpu for gpu, _ in rooms if state.gpus[gpu].node == node]
        if len(here) >= count:
            yield tuple(here[:count])
