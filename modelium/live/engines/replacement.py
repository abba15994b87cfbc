"""Replace copies that were loaded otherwise than their model is to be served now.

A new copy is loaded on the same GPUs if they hold both, else on others that have room, and the old
one serves until the new one is ready, then finishes its requests and goes. Where no GPU has room,
the old one goes first, and requests wait. Copies of one model are replaced one after another: if a
new one cannot be loaded, the others stay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from modelium.control.rules import may_replace, refusal
from modelium.control.state import Copy
from modelium.core import AWAKE, COMING, Action, Load, Phase
from modelium.live.requests.interface import CONFLICT, UNAVAILABLE, RefusedError

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

Follow = Callable[[Callable[[], Action]], Awaitable[str]]
"""Starts an action and waits for its end; gives the error, or ""."""


async def replace_copies(
    cluster: LiveCluster, reasons: Mapping[str, str], follow: Follow
) -> list[str]:
    """Replace the instances that `reasons` names, each for its reason; says what was done.

    Raises RefusedError: 503 if one cannot be loaded anew, 409 if one cannot be unloaded.
    """
    done = []
    for name, reason in reasons.items():
        if name in cluster.state.instances:
            done.append(await _replace(cluster, cluster.state.copy(name), reason, follow))
    return done


async def _replace(cluster: LiveCluster, copy: Copy, reason: str, follow: Follow) -> str:
    """See a copy off, and another one in its place if it was up or coming."""
    state, told, absent = cluster.state, f"{copy.id} had gone already", False
    while copy.id in state.instances and not copy.stuck:
        changed = cluster.changed
        if copy.phase in COMING:
            cluster.cancel(copy, reason)
            told, absent = f"{copy.id} was not ready yet and was begun again", True
        elif copy.phase is Phase.ASLEEP:
            await _dismiss(cluster, copy, reason, follow)
            told = f"{copy.id} slept and was unloaded"
        elif copy.phase is Phase.READY and (gpus := _place_beside(cluster, copy)):
            await _move(cluster, copy, gpus, reason, follow)
            told = f"{copy.id} was replaced on {', '.join(gpus)} without a gap"
        elif copy.phase is Phase.READY and (never := cluster.dispatcher.never(copy.model)):
            raise RefusedError(UNAVAILABLE, f"{copy.id} serves on: {never}")
        elif copy.phase is Phase.READY:
            await _dismiss(cluster, copy, reason, follow)
            told, absent = f"{copy.id} went first, since no GPU has room for a second copy", True
        if copy.id in state.instances:
            await changed.wait()
    if absent:
        await _load_again(cluster, copy, reason, follow)
    return told


async def _move(
    cluster: LiveCluster, copy: Copy, gpus: tuple[str, ...], reason: str, follow: Follow
) -> None:
    if error := await follow(lambda: cluster.replace(copy, gpus, reason)):
        why = f"{copy.id} serves on: its replacement does not load: {error}"
        raise RefusedError(UNAVAILABLE, why)


async def _dismiss(cluster: LiveCluster, copy: Copy, reason: str, follow: Follow) -> None:
    if error := await follow(lambda: cluster.dismiss(copy, reason)):
        raise RefusedError(CONFLICT, error)


async def _load_again(cluster: LiveCluster, old: Copy, reason: str, follow: Follow) -> None:
    """Have the model loaded, unless the policy has begun that already for waiting requests."""
    model = old.model
    if not _is_wanted(cluster, model):
        return
    state = cluster.state
    loads = (Load(model, gpus, reason) for gpus in _places(cluster, old))
    action = next((one for one in loads if not refusal(state, one, state.limits)), None)
    if action is None:
        cluster.dispatcher.wish(model, reason)  # its turn comes when there is room
        return

    def start() -> Load:
        cluster.start(action)
        return action

    error = await follow(start)
    if error and _is_wanted(cluster, model):
        raise RefusedError(UNAVAILABLE, f"{model} does not load: {error}")


def _is_wanted(cluster: LiveCluster, model: str) -> bool:
    """It is served still, and no copy of it is up or coming."""
    dispatcher = cluster.dispatcher
    if model not in cluster.state.models or model in dispatcher.going or dispatcher.closed:
        return False
    copies = cluster.state.instances_of(model)
    return not any(one.phase in AWAKE for one in copies)


def _place_beside(cluster: LiveCluster, copy: Copy) -> tuple[str, ...]:
    """GPUs on which a new copy may be loaded beside the old one; none if there are none."""
    state = cluster.state
    places = _places(cluster, copy)
    return next((gpus for gpus in places if not may_replace(state, copy, gpus, state.limits)), ())


def _places(cluster: LiveCluster, copy: Copy) -> Iterator[tuple[str, ...]]:
    """Where the model might be loaded: the copy's own GPUs, then on each node those with most room.

    Whether they do is for the rules to say.
    """
    state, count = cluster.state, cluster.state.models[copy.model].gpus
    yield copy.gpus
    rooms = sorted(state.rooms().items(), key=lambda item: -item[1])
    allowed = [gpu for gpu, _ in rooms if state.models[copy.model].may_use(gpu)]
    for node in state.nodes:
        here = [gpu for gpu in allowed if state.gpus[gpu].node == node]
        if len(here) >= count:
            yield tuple(here[:count])
