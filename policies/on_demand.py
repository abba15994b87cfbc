"""`OnDemand`: load what is missed, evict what a rule says. The base of every caching policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple

from modelium.core import (
    Action,
    ClusterState,
    Demand,
    Done,
    Event,
    Fault,
    Instance,
    Load,
    Miss,
    Model,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.policies.place import PLACES, Place, PlaceName, choose
from modelium.policies.room import (
    ASLEEP,
    AWAKE,
    LEAVING,
    OUT,
    READY,
    Option,
    Ranking,
    Survey,
    Victim,
    ascending,
    awake_copies,
    least_copies,
    may_leave,
    sweep,
)  # fmt: skip
from modelium.units import counted, format_seconds

Evict = Callable[[ClusterState, Instance], Any]
"""Key of an idle copy, a float or a tuple of floats: the copy with the lowest leaves first."""
Wants = Iterable[tuple[str, Callable[[], str]]]
"""Models that need one more copy, each with the reason, worded only if it comes to an action."""
HAIR_S = 1e-6
"""Reminders come this much late, so that rounding never makes them early."""


def last_use(state: ClusterState, copy: Instance) -> float:
    """Evict the copy whose last request was sent longest ago."""
    return copy.last_used_s


class Need(NamedTuple):
    """What a copy needs of its GPUs."""

    bytes_per_gpu: int
    gpus: int
    overdue: bool
    """Its requests have waited so long that busy copies may be drained."""
    waking: Instance | None = None
    """The sleeping copy that it is."""


class OnDemand:
    """Load a model when it is missed, and make room by evicting the idle copies of lowest key.

    A sleeping copy is woken rather than another one loaded. Copies that are busy, pinned, younger
    than the minimum residency, or the last `min_replicas` of their model stay. If the idle copies
    cannot make room it answers nothing: the cluster offers the miss again when something changed.

    place: which GPUs to take among those with room.
    sleep_level: evict by putting to sleep (1: weights go to host RAM if they fit; 2: are dropped).
    max_replicas: add copies of a model up to this many while requests queue at those it has.
    scale_waiting: queued requests per copy that call for one more.
    scale_every_s: how often to look at the queues (only if max_replicas is above 1).
    drain_after_s: once a request has waited this long for an instance, busy copies may be told to
        finish and leave; inf: only idle ones leave.
    """

    label = "last use at"
    """What the eviction key is called in reasons."""

    def __init__(
        self,
        place: PlaceName | Place = "most_free",
        evict: Evict = last_use,
        *,
        sleep_level: Literal[0, 1, 2] = 0,
        max_replicas: int = 1,
        scale_waiting: int = 8,
        scale_every_s: float = 5.0,
        drain_after_s: float = float("inf"),
    ) -> None:
        self.every_s = scale_every_s if max_replicas > 1 else None
        self._place = PLACES[place] if isinstance(place, str) else place
        self._evict = evict
        self._ranking = Ranking(evict) if evict is last_use else None
        self.sleeps = sleep_level > 0
        self._sleep_level = sleep_level
        self._max_replicas = max_replicas
        self._scale_waiting = scale_waiting
        self._drain_after_s = drain_after_s
        self._models: Mapping[str, Model] = {}
        self._least: dict[str, int] = {}
        self._reminded_s = float("-inf")

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Answer `event`: bring back what is missed, and the copies that must always be there."""
        if state.models is not self._models:
            self._models = state.models
            self._least = {m.name: n for m in state.models.values() if (n := least_copies(m))}
        match event:
            case Miss(model):
                return self._bring(state, self._missed(state, (model,)))
            case Done() if self._least:
                return self._bring(state, self._required(state))
            case Tick() | Fault():
                missed = self._missed(state, state.waiting_models())
                wants = chain(self._required(state), missed, self._crowded(state))
                return self._bring(state, wants)
        return ()

    def kv_bytes(self, state: ClusterState, model: str) -> int | None:
        """KV pool of a copy about to be loaded, over all its GPUs; None: the model's own."""
        return None

    def evicted(self, state: ClusterState, victims: Sequence[Victim]) -> None:
        """Hear which copies are about to leave (for eviction rules that age)."""

    # Which models need one more copy

    def _missed(self, state: ClusterState, models: Iterable[str]) -> Wants:
        for model in models:
            if all(copy.phase in OUT for copy in state.instances_of(model)):
                yield model, partial(_waiting, state.demand[model])

    def _required(self, state: ClusterState) -> Wants:
        for model, least in self._least.items():
            if (have := awake_copies(state, model)) < least:
                yield model, partial("{} of at least {} copies".format, have, least)

    def _crowded(self, state: ClusterState) -> Wants:
        for model in state.models if self._max_replicas > 1 else ():
            copies = [c for c in state.instances_of(model) if c.phase in AWAKE]
            queued = sum(copy.waiting for copy in copies)
            crowded = queued >= self._scale_waiting * len(copies) > 0
            coming = any(copy.phase is not READY for copy in copies)
            if crowded and not coming and len(copies) < self._max_replicas:
                yield model, partial("{} queued at {} copies".format, queued, len(copies))

    # How they get it

    def _bring(self, state: ClusterState, wants: Wants) -> list[Action]:
        actions: list[Action] = []
        taken: set[str] = set()
        brought: set[str] = set()
        lacking: list[str] = []
        for model, why in wants:
            survey = Survey(state, taken, len(brought))
            if model in brought or survey.starts <= 0:
                continue
            option, asleep = self._option(state, survey, model)
            if option is None:
                lacking.append(model)
                continue
            brought.add(model)
            taken.update(option.gpus, *(copy.gpus for _, _, copy in option.victims))
            actions += self._evictions(state, model, option)
            frees = ", ".join(name for _, name, _ in option.victims) or "nothing"
            reason = f"{why()}; frees {frees}"
            if asleep:
                actions.append(Wake(asleep.id, reason))
            else:
                kv_bytes = self.kv_bytes(state, model)
                actions.append(Load(model, option.gpus, reason, kv_bytes))
        return actions + self._patience(state, lacking) if lacking else actions

    def _option(
        self, state: ClusterState, survey: Survey, model: str
    ) -> tuple[Option | None, Instance | None]:
        """Where one more copy of `model` fits, and which sleeping copy it is, if it is one."""
        spec, rooms = state.models[model], survey.rooms
        overdue = self._overdue_s(state, model) <= 0
        staying = [c for c in state.instances_of(model) if c.phase is not LEAVING]
        asleep = [c for c in staying if c.phase is ASLEEP]
        for copy in sorted(asleep, key=lambda c: (c.sleep_level, c.id)):
            here = {gpu: rooms[gpu] for gpu in copy.gpus if gpu in rooms}
            size = copy.awake_bytes_per_gpu - copy.bytes_per_gpu
            need = Need(size, len(copy.gpus), overdue, copy)
            if option := self._fit(state, survey, here, need):
                return option, copy
        if len(staying) >= spec.max_replicas:
            return None, None
        if spec.spread and staying:
            nodes = {state.gpus[c.gpus[0]].node for c in staying if c.gpus[0] in state.gpus}
            rooms = {gpu: room for gpu, room in rooms.items() if state.gpus[gpu].node not in nodes}
        size = spec.bytes_per_gpu(self.kv_bytes(state, model))
        return self._fit(state, survey, rooms, Need(size, spec.gpus, overdue)), None

    def _fit(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        if len(rooms) < need.gpus:
            return None
        if gpus := choose(state, rooms, need.bytes_per_gpu, need.gpus, self._place):
            return Option(gpus)
        return self.make_room(state, survey, rooms, need)

    def make_room(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        """Choose GPUs for a copy that fits nowhere yet, and who leaves them; None: nobody may."""
        # Mostly nobody is idle there: then nothing has to be put in order first.
        idle = any(not c.busy for gpu in rooms for c in state.instances_on(gpu) if c.phase is READY)
        for level, asleep, drain in self._ways(survey, need.overdue):
            if not (idle or asleep):
                continue
            victims = self._victims(state, survey, rooms, need.waking, asleep, drain)
            gives = partial(self._gives, state, level)
            if option := sweep(state, rooms, need.bytes_per_gpu, need.gpus, victims, gives):
                return option._replace(sleep_level=level)
        return None

    def _victims(
        self,
        state: ClusterState,
        survey: Survey,
        rooms: Mapping[str, int],
        waking: Instance | None,
        asleep: bool,
        drain: bool,
    ) -> Iterator[Victim]:
        """Who may leave these GPUs (or sleeps there, with `asleep`), the lowest key first."""
        evict, least, gpus = self._evict, self._least, rooms.keys()

        def here(copy: Instance) -> bool:
            return (
                (drain or not copy.busy) and not gpus.isdisjoint(copy.gpus) and copy is not waking
            )

        if self._ranking and not asleep:
            return self._ranking.ascending(
                state, lambda copy: here(copy) and may_leave(state, copy, least)
            )
        copies = survey.ready + survey.asleep if asleep else survey.ready
        heap = [(evict(state, copy), copy.id, copy) for copy in copies if here(copy)]
        return ascending(heap, lambda copy: may_leave(state, copy, least))

    def _ways(self, survey: Survey, overdue: bool) -> Iterator[tuple[int, bool, bool]]:
        """Ways to make room, the gentlest first: sleep level (0: unload), also sleepers, busy."""
        if self._sleep_level:
            yield self._sleep_level, False, False
        yield 0, False, False
        if survey.asleep:
            yield 0, True, False
        if overdue:
            yield 0, True, True

    def _overdue_s(self, state: ClusterState, model: str) -> float:
        """How long until requests for `model` have waited long enough to drain busy copies."""
        if self._drain_after_s == float("inf"):
            return self._drain_after_s
        return self._drain_after_s - state.demand[model].oldest_wait_s

    def _gives(self, state: ClusterState, level: int, copy: Instance) -> int:
        """Bytes that each GPU of `copy` gets back if it leaves."""
        spec = state.models[copy.model]
        if not level or (level == 1 and spec.weights_bytes > host_free_bytes(state, copy)):
            return copy.bytes_per_gpu
        return max(0, copy.bytes_per_gpu - spec.asleep_bytes)

    def _evictions(self, state: ClusterState, model: str, option: Option) -> Iterator[Action]:
        if option.victims:
            self.evicted(state, option.victims)
        slept: dict[str, int] = {}
        for key, name, copy in option.victims:
            idle = format_seconds(state.now_s - copy.idle_since_s)
            requests = copy.running + copy.waiting
            doing = f"drains {counted(requests, 'request')}" if requests else f"idle {idle}"
            why = f"{self.label} {number(key)}, lowest; {doing}; makes room for {model}"
            node = state.gpus[copy.gpus[0]].node
            sleeps = option.sleep_level if name not in option.unloads else 0
            weights = state.models[copy.model].weights_bytes if sleeps == 1 else 0
            slept[node] = slept.get(node, 0) + weights
            if sleeps and slept[node] <= state.host_free_bytes(node):
                yield Sleep(name, option.sleep_level, why)
            else:
                yield Unload(name, why, drain=copy.busy)

    def _patience(self, state: ClusterState, lacking: Iterable[str]) -> list[Action]:
        """Ask for a tick when the next copy may leave that now may not."""
        stay_s = state.limits.min_residency_s
        if not stay_s and self._drain_after_s == float("inf"):
            return []
        now_s = state.now_s
        ends = [now_s + self._overdue_s(state, model) for model in lacking]
        if stay_s:
            ends += [copy.ready_since_s + stay_s for copy in state.instances.values()]
        later = [end for end in ends if now_s - HAIR_S / 2 < end < float("inf")]
        if not later or self._reminded_s > now_s:
            return []
        self._reminded_s = min(later) + HAIR_S
        soon = format_seconds(self._reminded_s - now_s)
        why = f"no room for {', '.join(lacking)}; in {soon} one more copy may leave"
        return [Remind(self._reminded_s, why)]


def _waiting(asked: Demand) -> str:
    return f"{asked.waiting} waiting, oldest {format_seconds(asked.oldest_wait_s)}"


def number(key: Any) -> str:
    """Print an eviction key (of a tuple, its first part)."""
    first = key[0] if isinstance(key, tuple) else key
    return f"{first:.1f}" if abs(first) >= 1000 else f"{first:.3g}"


def host_free_bytes(state: ClusterState, copy: Instance) -> int:
    """Room in the RAM of the node where `copy` is."""
    return state.host_free_bytes(state.gpus[copy.gpus[0]].node)
