"""Who has to leave so that a copy fits: a survey of the cluster, then one sweep over victims."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, NamedTuple

from modelium.core import AWAKE, ClusterState, Instance, Model, Phase

READY, WAKING = Phase.READY, Phase.WAKING
ASLEEP, LEAVING = Phase.ASLEEP, Phase.LEAVING
"""Plain names: a look-up in an enumeration costs more than all the rest of a step here."""
OUT = (ASLEEP, LEAVING)
"""Copies that will not serve unless something is done."""


Victim = tuple[Any, str, Instance]
"""Key, id and copy of a copy that may leave; the lowest goes first."""


class Option(NamedTuple):
    """GPUs for a copy, and who must leave them first."""

    gpus: tuple[str, ...]
    victims: tuple[Victim, ...] = ()
    sleep_level: int = 0
    """They leave by going to sleep at this level where they can; 0: they are unloaded."""
    unloads: frozenset[str] = frozenset()
    """Those that are unloaded all the same."""

    def level(self, victim: Instance) -> int:
        """How this one leaves: asleep at this level, or unloaded (0)."""
        return 0 if victim.id in self.unloads else self.sleep_level


class Survey:
    """Room on each GPU that may start a load; the copies by phase, looked up only when asked."""

    def __init__(
        self,
        state: ClusterState,
        avoid: Collection[str] = (),
        started: int = 0,
        rooms: Mapping[str, int] | None = None,
    ) -> None:
        """`rooms` are those of `state`, if they are known already."""
        self._instances = state.instances
        self.starts = state.limits.loads_at_once - started - len(state.coming())
        """Loads and wakes that may still begin."""
        self.rooms = state.rooms() if rooms is None else dict(rooms)
        """Bytes that a load started now could get there, by GPU."""
        for gpu in avoid:
            self.rooms.pop(gpu, None)

    @cached_property
    def ready(self) -> list[Instance]:
        """The copies that take requests."""
        return [copy for copy in self._instances.values() if copy.phase is READY]

    @cached_property
    def asleep(self) -> list[Instance]:
        """The copies that could be woken."""
        return [copy for copy in self._instances.values() if copy.phase is ASLEEP]


def least_copies(model: Model) -> int:
    """How many awake copies of `model` there must always be."""
    return max(model.min_replicas, int(model.pinned))


def awake_copies(state: ClusterState, model: str) -> int:
    """How many copies of `model` are ready or about to be."""
    return sum(copy.phase in AWAKE for copy in state.instances_of(model))


def may_leave(state: ClusterState, copy: Instance, least: Mapping[str, int]) -> bool:
    """Nothing but requests keeps `copy` here; `least` has the models of which some must stay."""
    stay_s = state.limits.min_residency_s
    if stay_s and copy.phase is READY and state.now_s - copy.ready_since_s < stay_s:
        return False
    return not stays_for_good(state, copy, least)


def _kept(state: ClusterState, copy: Instance, least: Mapping[str, int]) -> bool:
    if state.models[copy.model].pinned:
        return True
    return copy.phase in AWAKE and awake_copies(state, copy.model) <= least[copy.model]


def stays_for_good(state: ClusterState, copy: Instance, least: Mapping[str, int]) -> bool:
    """The operator wants `copy` here, whoever waits; `least` as in `may_leave`."""
    return bool(least) and copy.model in least and _kept(state, copy, least)


def ascending(heap: list[Victim], allowed: Callable[[Instance], bool]) -> Iterator[Victim]:
    """Yield the victims that are allowed to leave, the lowest key first."""
    heapify(heap)  # mostly, few are looked at: cheaper than sorting
    while heap:
        victim = heappop(heap)
        if allowed(victim[2]):
            yield victim


class Ranking:
    """The ready copies by a key that never falls while a copy stays, kept between decisions.

    An entry's key may be too low by now: it is looked at again when its turn comes, and put back
    where it belongs. So to find the lowest, few copies are looked at, not all.
    """

    def __init__(self, key: Callable[[ClusterState, Instance], Any]) -> None:
        self._key = key
        self._heap: list[Victim] = []
        self._aside: list[Victim] = []
        self._seen: set[str] = set()
        self._unready: list[str] = []
        self._instances: Mapping[str, Instance] = {}

    def ascending(
        self, state: ClusterState, allowed: Callable[[Instance], bool]
    ) -> Iterator[Victim]:
        """Yield the ready copies that are allowed to leave, the lowest key first."""
        self._admit(state)
        heap, key, instances = self._heap, self._key, state.instances
        while heap:
            before, name, copy = heap[0]
            if instances.get(name) is not copy or copy.phase is not READY:
                self._unready.append(heappop(heap)[1])
            elif (now := key(state, copy)) != before:
                heapreplace(heap, (now, name, copy))
            else:
                self._aside.append(heappop(heap))
                if allowed(copy):
                    yield self._aside[-1]

    def _admit(self, state: ClusterState) -> None:
        """Enter what became ready since the last time; put back whom that time passed by."""
        instances = state.instances
        if instances is not self._instances:  # another state
            self._heap, self._aside, self._unready, self._seen = [], [], [], set()
            self._instances = instances
        if self._heap:
            for victim in self._aside:
                heappush(self._heap, victim)
        else:
            self._heap = self._aside  # in order, and so a heap
        self._aside = []
        newest_first: Iterator[str] = reversed(instances)  # type: ignore[arg-type]
        for name in newest_first:
            if name in self._seen:
                break
            self._seen.add(name)
            self._unready.append(name)
        unready, self._unready = self._unready, []
        for name in unready:
            copy = instances.get(name)
            if copy is None:
                self._seen.discard(name)
            elif copy.phase is READY:
                heappush(self._heap, (self._key(state, copy), name, copy))
            else:
                self._unready.append(name)


def sweep(
    state: ClusterState,
    rooms: Mapping[str, int],
    need_bytes: int,
    count: int,
    victims: Iterable[Victim],
    gives: Callable[[Instance], int],
) -> Option | None:
    """Find `count` GPUs of one node that have room once the lowest victims have left.

    Victims leave in thought one by one, giving `gives(copy)` bytes on each of their GPUs, until
    some node has enough GPUs with room. So of all GPU sets it finds the one whose highest victim
    is lowest: with equal sizes and one GPU a copy, exactly the victim that one cache as large as
    all GPUs together would choose.
    """
    room = dict(rooms)
    opened: dict[str, list[str]] = {}
    if count > 1:
        for gpu, free in room.items():
            if free >= need_bytes:
                opened.setdefault(state.gpus[gpu].node, []).append(gpu)
    swept = []
    for victim in victims:
        swept.append(victim)
        more = gives(victim[2])
        for gpu in victim[2].gpus:
            before = room.get(gpu)
            if before is None:
                continue
            room[gpu] = after = before + more
            if before < need_bytes <= after:
                enough = opened.setdefault(state.gpus[gpu].node, [])
                enough.append(gpu)
                if len(enough) == count:
                    lack = {gpu: need_bytes - rooms[gpu] for gpu in enough}
                    return Option(tuple(enough), _needed(lack, swept, gives))
    return None


def _needed(
    lack: dict[str, int], swept: Iterable[Victim], gives: Callable[[Instance], int]
) -> tuple[Victim, ...]:
    """Of the swept victims, those whose GPUs still lacked room when their turn came."""
    leaving = []
    for victim in swept:
        short = [gpu for gpu in victim[2].gpus if lack.get(gpu, 0) > 0]
        if short:
            leaving.append(victim)
            for gpu in short:
                lack[gpu] -= gives(victim[2])
    return tuple(leaving)
