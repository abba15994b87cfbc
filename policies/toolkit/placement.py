"""Where a copy goes: pure choices over the room that each GPU has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from modelium.core import ClusterState

Place = Callable[[int, int], float]
"""Score of a GPU from its room and what the copy needs there, in bytes; the lowest is taken."""
PlaceName = Literal["most_free", "best_fit", "first_fit"]


def most_free(room_bytes: int, need_bytes: int) -> float:
    """Prefer the GPU with most room: spreads copies, so fewer of them share a GPU's time."""
    return -float(room_bytes)


def best_fit(room_bytes: int, need_bytes: int) -> float:
    """Prefer the GPU with least room left over: keeps large holes for large models."""
    return float(room_bytes - need_bytes)


def first_fit(room_bytes: int, need_bytes: int) -> float:
    """Prefer the first GPU, in the order of the configuration."""
    return 0.0


PLACES: dict[str, Place] = {
    "most_free": most_free,
    "best_fit": best_fit,
    "first_fit": first_fit,
}


def choose(
    state: ClusterState, rooms: Mapping[str, int], need_bytes: int, count: int, place: Place
) -> tuple[str, ...] | None:
    """Choose `count` GPUs of one node, each with `need_bytes` of room, or None if there are none.

    The lowest scores win, on the node where their sum is lowest; ties go to the configuration's
    order.
    """
    fitting = [gpu for gpu, room in rooms.items() if room >= need_bytes]
    if len(fitting) < count:
        return None
    if count == 1:
        return (min(fitting, key=lambda gpu: place(rooms[gpu], need_bytes)),)
    ranked = sorted(fitting, key=lambda gpu: place(rooms[gpu], need_bytes))
    best, best_score = None, float("inf")
    for gpus in by_node(state, ranked).values():
        score = sum(place(rooms[gpu], need_bytes) for gpu in gpus[:count])
        if len(gpus) >= count and score < best_score:
            best, best_score = tuple(gpus[:count]), score
    return best


def by_node(state: ClusterState, gpus: list[str]) -> dict[str, list[str]]:
    """Group GPUs by node, keeping their order."""
    groups: dict[str, list[str]] = {}
    for gpu in gpus:
        groups.setdefault(state.gpus[gpu].node, []).append(gpu)
    return groups
