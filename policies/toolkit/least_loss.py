"""Make room where it hurts least: who goes to sleep, who is unloaded, and on which GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import NamedTuple

from modelium.core import ClusterState, Instance
from modelium.policies.toolkit.eviction import Option, Victim
from modelium.policies.toolkit.placement import by_node

MOST_GROUPS = 200
"""GPU groups that are looked at for one copy."""


class Leaver(NamedTuple):
    """An idle copy that may make room, and what each way of leaving frees and loses."""

    copy: Instance
    unload_loss: float
    sleep_loss: float = float("inf")
    """`inf`: it cannot go to sleep."""
    sleep_bytes: int = 0
    """What going to sleep frees on each of its GPUs."""


class _Step(NamedTuple):
    per_byte: float
    id: str
    frees_bytes: int
    loss: float
    unloads: bool
    leaver: Leaver


def least_loss(
    state: ClusterState,
    rooms: Mapping[str, int],
    need_bytes: int,
    count: int,
    leavers: Sequence[Leaver],
) -> Option | None:
    """Find the `count` GPUs of one node where making room for `need_bytes` loses least.

    On each group of GPUs the steps (put to sleep; unload) are taken by loss per byte, then those
    that turn out not to be needed are taken back, the dearest first. None if no group has room.
    """
    best, best_loss = None, float("inf")
    for group in _groups(state, rooms, count):
        lack = {gpu: need_bytes - rooms[gpu] for gpu in group}
        here = [leaver for leaver in leavers if any(gpu in lack for gpu in leaver.copy.gpus)]
        taken = _taken(lack, sorted(step for leaver in here for step in _steps(leaver)))
        if taken is not None and (loss := sum(step.loss for step in taken)) < best_loss:
            best, best_loss = _option(group, taken), loss
    return best


def _groups(state: ClusterState, rooms: Mapping[str, int], count: int) -> Iterable[tuple[str, ...]]:
    nodes = by_node(state, list(rooms)).values()
    return islice((group for gpus in nodes for group in combinations(gpus, count)), MOST_GROUPS)


def _steps(leaver: Leaver) -> Iterator[_Step]:
    """Going to sleep, then from there to being unloaded; or unloaded at once."""
    copy, held = leaver.copy, leaver.copy.bytes_per_gpu
    slept, loss = 0, 0.0
    if leaver.sleep_loss < leaver.unload_loss and leaver.sleep_bytes > 0:
        slept, loss = leaver.sleep_bytes, leaver.sleep_loss
        yield _Step(loss / slept, copy.id, slept, loss, False, leaver)
    if rest := held - slept:
        more = leaver.unload_loss - loss
        # Never before it went to sleep, however cheap.
        per_byte = max(more / rest, loss / slept if slept else 0.0)
        yield _Step(per_byte, copy.id, rest, more, True, leaver)


def _taken(lack: Mapping[str, int], steps: Iterable[_Step]) -> list[_Step] | None:
    """The steps that make the room that is lacking, or None if all together do not."""
    left, taken = dict(lack), []
    for step in steps:
        if any(left.get(gpu, 0) > 0 for gpu in step.leaver.copy.gpus):
            taken.append(step)
            _free(left, step, step.frees_bytes)
    if max(left.values()) > 0:
        return None
    for step in sorted(taken, key=lambda step: -step.loss):
        last = step.unloads or not any(s.id == step.id and s.unloads for s in taken)
        gpus = [gpu for gpu in step.leaver.copy.gpus if gpu in left]
        if last and all(left[gpu] + step.frees_bytes <= 0 for gpu in gpus):
            taken.remove(step)
            _free(left, step, -step.frees_bytes)
    return taken


def _free(left: dict[str, int], step: _Step, frees_bytes: int) -> None:
    for gpu in step.leaver.copy.gpus:
        if gpu in left:
            left[gpu] -= frees_bytes


def _option(group: tuple[str, ...], taken: list[_Step]) -> Option:
    """As victims, the lowest loss per byte first; their keys are requests per GiB."""
    unloads = frozenset(step.id for step in taken if step.unloads)
    victims: dict[str, Victim] = {}
    for step in taken:
        victims[step.id] = (step.loss, step.id, step.leaver.copy)
    return Option(group, tuple(victims.values()), 1, unloads)
