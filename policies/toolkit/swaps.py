"""`Swaps`: one copy comes in, others leave for it; what that costs, and when it may begin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from modelium.core import AWAKE, COMING, ClusterState, Instance
from modelium.policies.toolkit.draining import Draining
from modelium.policies.toolkit.eviction import ASLEEP, READY, WAKING, Option, stays_for_good, sweep
from modelium.policies.toolkit.placement import Place, by_node, choose


class Need(NamedTuple):
    """What a copy needs of its GPUs."""

    model: str
    bytes_per_gpu: int
    gpus: int
    allowed: Collection[str]
    """The GPUs that it may be on."""
    waking: Instance | None = None
    """The sleeping copy that it is."""


class Swap(NamedTuple):
    """How a copy gets room if busy copies make way for it, and when."""

    option: Option
    begins_s: float
    """When it may begin: its requests have waited long enough, and all time slices are over."""
    due_s: float
    """When its requests will have waited long enough."""
    enters_s: float
    """Seconds from its begin until the copy is ready, draining not counted."""


class Swaps:
    """Reckons with swaps by the rules of `draining`.

    levels: ways to leave that are tried in turn: asleep at this level, or unloaded (0).
    may_sleep: whether a copy that should sleep can; else it is unloaded.
    gives: bytes that each GPU gets back if a copy leaves so.
    """

    def __init__(
        self,
        draining: Draining,
        place: Place,
        levels: Iterable[int],
        may_sleep: Callable[[ClusterState, Instance], bool],
        gives: Callable[[ClusterState, int, Instance], int],
    ) -> None:
        self._draining, self._place = draining, place
        self._levels = tuple(dict.fromkeys(levels))
        self._may_sleep, self._gives = may_sleep, gives

    def later(
        self,
        state: ClusterState,
        need: Need,
        least: Mapping[str, int],
        avoid: Collection[str] = (),
    ) -> Swap | None:
        """The GPUs that can be had soonest, once time slices are over and loads have ended."""
        rooms = {
            gpu: state.free_bytes(gpu) + state.freeing_bytes(gpu)
            for gpu in need.allowed
            if gpu in state.gpus and gpu not in avoid
        }
        begin_s = _loads_begin_s(state)
        if gpus := choose(state, rooms, need.bytes_per_gpu, need.gpus, self._place):
            return self.dated(state, need, Option(gpus), max(map(begin_s, gpus)))
        copies = {
            copy.id: copy
            for gpu in rooms
            for copy in state.instances_on(gpu)
            if copy is not need.waking
            and (copy.phase in AWAKE or copy.phase is ASLEEP)
            and not stays_for_good(state, copy, least)
        }
        for level in self._levels:
            victims = sorted(
                (max(self.free_at_s(state, copy, level), *map(begin_s, copy.gpus)), name, copy)
                for name, copy in copies.items()
            )
            gives = partial(self._gives, state, level)
            if option := sweep(state, rooms, need.bytes_per_gpu, need.gpus, victims, gives):
                free_s = max(key for key, _, _ in option.victims)
                free_s = max(free_s, *map(begin_s, option.gpus))
                return self.dated(state, need, as_left(option, level), free_s)
        return None

    def dated(self, state: ClusterState, need: Need, option: Option, free_s: float) -> Swap:
        """A swap that may begin when its GPUs are free and the requests have waited for it."""
        enters_s = _enters_s(state, need, option.gpus)
        swaps_s = (self._swap_s(state, c, option.level(c)) for _, _, c in option.victims)
        wait_s = self._draining.wait_s(enters_s, swaps_s)
        due_s = state.now_s + wait_s - state.demand[need.model].oldest_wait_s
        return Swap(option, max(due_s, free_s), due_s, enters_s)

    def free_at_s(self, state: ClusterState, copy: Instance, level: int) -> float:
        """When `copy` may leave so for a request that has waited long enough."""
        stay_s = state.limits.min_residency_s
        if copy.busy or copy.phase in COMING:
            stay_s = max(stay_s, self._draining.slice_s(self._swap_s(state, copy, level)))
        if copy.phase is READY:
            return copy.ready_since_s + stay_s
        return state.now_s + (stay_s + _comes_s(state, copy) if copy.phase in COMING else 0.0)

    def leave_s(self, state: ClusterState, option: Option) -> float:
        """Seconds until all that are in the way have left, drains included."""
        return max(
            (
                self._draining.drain_s(copy)
                + leaves_s(state, copy, self._as(state, copy, option.level(copy)))
                for _, _, copy in option.victims
            ),
            default=0.0,
        )

    def _swap_s(self, state: ClusterState, copy: Instance, level: int) -> float:
        """Seconds to take `copy` out of its GPUs, asleep at `level` or unloaded, and back.

        Its drain is not counted: until that ends it works.
        """
        level = self._as(state, copy, level)
        out_s = leaves_s(state, copy, level)
        if level == 1:  # its weights come back as they went
            return 2 * out_s
        return out_s + state.costs.load_s(copy.model, copy.gpus)

    def _as(self, state: ClusterState, copy: Instance, level: int) -> int:
        return level if copy.phase in AWAKE and self._may_sleep(state, copy) else 0

    def starts_s(self, state: ClusterState, need: Need) -> float:
        """Seconds to load or wake the copy where that is fastest; inf if it has no place."""
        if need.waking:
            return _enters_s(state, need, need.waking.gpus)
        nodes = by_node(state, list(need.allowed)).values()
        places = (tuple(gpus[: need.gpus]) for gpus in nodes if len(gpus) >= need.gpus)
        return min((_enters_s(state, need, gpus) for gpus in places), default=float("inf"))


def _enters_s(state: ClusterState, need: Need, gpus: tuple[str, ...]) -> float:
    """Seconds to load or wake the copy on these GPUs, once it has room."""
    if need.waking:
        return state.costs.wake_s(need.waking.id)
    return state.costs.load_s(need.model, gpus)


def _loads_begin_s(state: ClusterState) -> Callable[[str], float]:
    """When a load may begin on a GPU: once those under way that keep others out have ended."""
    most, now_s = state.limits.loads_at_once_per_gpu, state.now_s
    ends_s: dict[str, float] = {}
    for copy in state.coming():
        end_s = now_s + _comes_s(state, copy)
        for gpu in copy.gpus:
            if gpu in state.gpus and state.coming_on(gpu) >= most:
                ends_s[gpu] = max(ends_s.get(gpu, now_s), end_s)
    return lambda gpu: ends_s.get(gpu, now_s)


def _comes_s(state: ClusterState, copy: Instance) -> float:
    """Seconds, at most, until a copy that loads or wakes is ready."""
    if copy.phase is WAKING:
        return state.costs.wake_s(copy.id)
    return state.costs.load_s(copy.model, copy.gpus)


def leaves_s(state: ClusterState, copy: Instance, level: int) -> float:
    """Seconds until a copy with no requests has left its GPUs, asleep at `level` or unloaded."""
    return state.costs.sleep_s(copy.id, level) if level else state.costs.unload_s(copy.id)


def as_left(option: Option, level: int) -> Option:
    """Those that are awake go to sleep at `level`; those that sleep already are unloaded."""
    asleep = frozenset(name for _, name, copy in option.victims if copy.phase is ASLEEP)
    return option._replace(sleep_level=level, unloads=asleep)
