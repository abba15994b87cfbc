"""`OnDemand`: load what is missed, evict what a rule says. The base of every caching policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

from modelium.core import (
    AWAKE,
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
    Outlook,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.errors import PolicyError
from modelium.policies.toolkit.draining import AUTO, Draining, Reservation
from modelium.policies.toolkit.eviction import (
    ASLEEP,
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
from modelium.policies.toolkit.placement import PLACES, Place, PlaceName, choose
from modelium.policies.toolkit.swaps import Need, Swap, Swaps, as_left, leaves_s
from modelium.units import counted, format_seconds

Evict = Callable[[ClusterState, Instance], Any]
"""Key of an idle copy, a float or a tuple of floats: the copy with the lowest leaves first.

To evict the copy with the highest first, return the negative.
"""
Wants = Iterable[tuple[str, Callable[[], str]]]
"""Models that need one more copy, each with the reason, worded only if it comes to an action."""
HAIR_S = 1e-6
"""Reminders come this much late, so that rounding never makes them early."""


def last_use(state: ClusterState, copy: Instance) -> float:
    """Evict the copy whose last request was sent longest ago."""
    return copy.last_used_s


class OnDemand:
    """Load a model when it is missed, and make room by evicting the idle copies of lowest key.

    A sleeping copy is woken rather than another one loaded. Copies that are busy, pinned, younger
    than the minimum residency, or the last `min_replicas` of their model stay. If the idle copies
    cannot make room it answers nothing: the cluster offers the miss again when something changed.
    Once a request has waited as long as a swap costs, busy copies are drained for it
    (`modelium.policies.toolkit.draining`): no request waits for ever.

    place: which GPUs to take among those with room.
    sleep_level: evict by putting to sleep (1: weights go to host RAM if they fit; 2: are dropped).
    max_replicas: add copies of a model up to this many while requests queue at those it has
        (pinned ones apart: their copies never leave again).
    scale_waiting: queued requests per copy that call for one more.
    scale_every_s: how often to look at the queues (only if max_replicas is above 1).
    drain_after_s: once a request has waited this long for an instance, busy copies may be told to
        finish and leave; auto: as long as the swap costs; inf: only idle ones leave.
    swap_share: largest share of a GPU's time that swaps of busy copies may take (auto only).
    """

    label = "last use at"
    """What the eviction key is called in the reasons in the decision log."""

    def __init__(
        self,
        place: PlaceName | Place = "most_free",
        evict: Evict = last_use,
        *,
        sleep_level: Literal[0, 1, 2] = 0,
        max_replicas: int = 1,
        scale_waiting: int = 8,
        scale_every_s: float = 5.0,
        drain_after_s: float | Literal["auto"] = AUTO,
        swap_share: float = 0.2,
    ) -> None:
        if not 0 < swap_share <= 1:
            raise PolicyError(f"swap_share is {swap_share:g}: give a share above 0, at most 1")
        self.every_s = scale_every_s if max_replicas > 1 else None
        self._place = PLACES[place] if isinstance(place, str) else place
        self._evict = evict
        self._ranking = Ranking(evict) if evict is last_use else None
        self.sleeps = sleep_level > 0
        self._sleep_level = sleep_level
        self._max_replicas = max_replicas
        self._scale_waiting = scale_waiting
        self._draining = Draining(drain_after_s, swap_share)
        levels = (sleep_level, 0)
        self._swaps = Swaps(self._draining, self._place, levels, self._may_sleep, self._gives)
        self._sleepless: set[str] = set()
        """Copies that were refused to go to sleep: they are unloaded instead."""
        self._later_s: list[float] = []
        """When this decision may come out otherwise, though nothing changes until then."""
        self._models: Mapping[str, Model] = {}
        self._least: dict[str, int] = {}
        self._reminded_s = float("-inf")

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Answer `event`: bring back what is missed, and the copies that must always be there."""
        if state.models is not self._models:
            self._models = state.models
            self._least = {m.name: n for m in state.models.values() if (n := least_copies(m))}
        self._draining.hear(state, event)
        match event:
            case Miss(model):
                return self._bring(state, self._missed(state, (model,)))
            case Done(Sleep() as asked, error, "") if error and self._lacked_ram(state, asked):
                sleepless = {n for n in self._sleepless if n in state.instances}
                self._sleepless = sleepless | {asked.instance}
                return self._bring(state, self._missed(state, _longest_wait_first(state)))
            case Done(_, error, instance) if self._least and (instance or not error):
                return self._bring(state, self._required(state))
            case Tick() | Fault():
                missed = self._missed(state, _longest_wait_first(state))
                wants = chain(self._required(state), missed, self._crowded(state))
                return self._bring(state, wants)
        return ()

    def outlook(self, state: ClusterState, model: str) -> Outlook | None:
        """Whom requests for `model` wait for; None if a copy is ready or on its way."""
        if any(copy.phase not in OUT for copy in state.instances_of(model)):
            return None
        if self._draining.never:
            return Outlook("waits for a copy in its way to fall idle: none is drained for it")
        first = self._draining.next(state)
        behind = first if first and first.goes_before(state, model) else None
        soonest = self._soonest(state, model, behind.gpus if behind else ())
        if soonest is None and behind:
            return self._behind(state, model, behind)
        if soonest is None:
            return Outlook("waits for room: what is there now never makes way for it")
        begins_s = max(0.0, soonest.begins_s - state.now_s)
        left_s = begins_s + self._swaps.leave_s(state, soonest.option) + soonest.enters_s
        busy = [copy.id for _, _, copy in soonest.option.victims if copy.busy]
        if not busy:
            return Outlook("", left_s)
        they = "they" if len(busy) > 1 else "it"
        why = f"waits for {', '.join(busy)} to finish: {they} will be drained in about "
        return Outlook(why + format_seconds(begins_s), left_s)

    def _soonest(self, state: ClusterState, model: str, avoid: Collection[str] = ()) -> Swap | None:
        """The swap by which `model` should be ready first; None: nobody ever makes way for it."""
        needs = self._needs(state, model)
        swaps = (self._swaps.later(state, need, self._least, avoid) for need in needs)
        return min(filter(None, swaps), key=lambda s: s.begins_s + s.enters_s, default=None)

    def _behind(self, state: ClusterState, model: str, first: Reservation) -> Outlook:
        """It can only come where another one comes first: two swaps in a row, at the least."""
        told, own = self.outlook(state, first.model), self._soonest(state, model)
        left_s = told.left_s if told and own else None
        if own and left_s is not None:
            left_s += self._swaps.leave_s(state, own.option) + own.enters_s
        why = f"waits behind {first.model}, which has waited longer and is next on "
        return Outlook(why + ", ".join(first.gpus), left_s)

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
            if state.models[model].pinned:
                continue  # its copies never leave again: others would lack their room for ever
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
        self._later_s = []
        rooms = state.rooms()
        for model, why in wants:
            reserved = self._draining.reserved(state, model)
            avoid = taken.union(reserved) if reserved else taken
            survey = Survey(state, avoid, len(brought), rooms)
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
        for need in self._needs(state, model):
            rooms = survey.rooms
            if need.allowed is not state.gpus:
                rooms = {gpu: rooms[gpu] for gpu in need.allowed if gpu in rooms}
            if option := self._fit(state, survey, rooms, need):
                return option, need.waking
        return None, None

    def _needs(self, state: ClusterState, model: str) -> Iterator[Need]:
        """The ways to have one more copy of `model`: a sleeping one, else a new one."""
        spec = state.models[model]
        staying = [c for c in state.instances_of(model) if c.phase is not LEAVING]
        asleep = [c for c in staying if c.phase is ASLEEP]
        for copy in sorted(asleep, key=lambda c: (c.sleep_level, c.id)):
            size = copy.awake_bytes_per_gpu - copy.bytes_per_gpu
            yield Need(model, size, len(copy.gpus), copy.gpus, copy)
        if len(staying) >= spec.max_replicas:
            return
        allowed: Collection[str] = state.gpus
        if spec.gpus_allowed is not None:
            allowed = list(filter(spec.may_use, state.gpus))
        if spec.spread and staying:
            nodes = {state.gpus[c.gpus[0]].node for c in staying if c.gpus[0] in state.gpus}
            allowed = [gpu for gpu in allowed if state.gpus[gpu].node not in nodes]
        size = spec.bytes_per_gpu(self.kv_bytes(state, model))
        yield Need(model, size, spec.gpus, allowed)

    def _fit(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        if len(rooms) >= need.gpus:
            if gpus := choose(state, rooms, need.bytes_per_gpu, need.gpus, self._place):
                return Option(gpus)
            if option := self.make_room(state, survey, rooms, need):
                return option
        return self._drain(state, survey, rooms, need)

    def make_room(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        """Choose GPUs for a copy that fits nowhere yet, and who leaves them; None: nobody may."""
        # Mostly nobody is idle there: then nothing has to be put in order first.
        idle = any(not c.busy for gpu in rooms for c in state.instances_on(gpu) if c.phase is READY)
        for level, asleep in self._ways(survey):
            if not (idle or asleep):
                continue
            victims = self._victims(state, survey, rooms, need.waking, asleep)
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
        drains: Callable[[Instance], bool] | None = None,
    ) -> Iterator[Victim]:
        """Who may leave these GPUs (or sleeps there, with `asleep`), the lowest key first.

        Of the busy copies those that `drains` allows.
        """
        evict, least, gpus = self._evict, self._least, rooms.keys()

        def here(copy: Instance) -> bool:
            return (
                not gpus.isdisjoint(copy.gpus)
                and copy is not waking
                and (not copy.busy or (drains is not None and drains(copy)))
            )

        if self._ranking and not asleep:
            return self._ranking.ascending(
                state, lambda copy: here(copy) and may_leave(state, copy, least)
            )
        copies = survey.ready + survey.asleep if asleep else survey.ready
        heap = [(evict(state, copy), copy.id, copy) for copy in copies if here(copy)]
        return ascending(heap, lambda copy: may_leave(state, copy, least))

    def _ways(self, survey: Survey) -> Iterator[tuple[int, bool]]:
        """Ways to make room, the gentlest first: sleep level (0: unload), also sleepers."""
        if self._sleep_level:
            yield self._sleep_level, False
        yield 0, False
        if survey.asleep:
            yield 0, True

    # Busy copies make way

    def _drain(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        """Drain busy copies too, if the requests have waited long enough; else note when."""
        asked, draining = state.demand[need.model], self._draining
        if draining.never or not asked.waiting:
            return None
        again_s = draining.looks_again_s(state, need.model, need.waking)
        if again_s is None:  # whoever leaves: it waits at least until its own start has been paid
            again_s = state.now_s - asked.oldest_wait_s
            again_s += draining.wait_s(self._swaps.starts_s(state, need))
            draining.look_again(state, need.model, need.waking, again_s)
        # The clock is read anew each time: live, it goes on meanwhile, and a swap that may begin
        # as soon as it is found would never be due by a time that was read before.
        if again_s <= state.now_s:
            swap = self._swap(state, survey, rooms, need) if len(rooms) >= need.gpus else None
            if swap and swap.begins_s <= state.now_s:
                return swap.option
            swap = swap or self._swaps.later(state, need, self._least)
            gpus = swap.option.gpus if swap and swap.due_s <= state.now_s else ()
            again_s = state.now_s
            if swap and not gpus:  # they are reserved from when it is due, not when it begins
                again_s = swap.due_s
            elif swap and not any(map(state.coming_on, gpus)):
                # When what loads there is ready is a guess: the end of the load tells.
                again_s = swap.begins_s
            draining.look_again(state, need.model, need.waking, again_s, gpus)
        if again_s > state.now_s:  # else what is in the way ends with an event
            self._later_s.append(again_s)
        return None

    def _swap(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Swap | None:
        """Who would leave now, busy or not; None: those who may leave now make no room."""
        now_s = state.now_s
        ways = ((self._sleep_level, False), (self._sleep_level, True), (0, True))
        for level, asleep in dict.fromkeys(ways):
            if asleep and level == self._sleep_level and not survey.asleep:
                continue  # nobody sleeps: this way was tried

            def drains(copy: Instance, level: int = level) -> bool:
                return self._swaps.free_at_s(state, copy, level) <= now_s

            victims = self._victims(state, survey, rooms, need.waking, asleep, drains)
            gives = partial(self._gives, state, level)
            if option := sweep(state, rooms, need.bytes_per_gpu, need.gpus, victims, gives):
                return self._swaps.dated(state, need, as_left(option, level), now_s)
        return None

    def _may_sleep(self, state: ClusterState, copy: Instance) -> bool:
        """It may sleep: its weights have room in the RAM of its node, if they go there."""
        spec = state.models[copy.model]
        if copy.id in self._sleepless or not spec.can_sleep:
            return False
        return self._sleep_level != 1 or spec.weights_bytes <= host_free_bytes(state, copy)

    def _lacked_ram(self, state: ClusterState, refused: Sleep) -> bool:
        """It was refused for want of RAM, as it seems: nothing else keeps the copy awake."""
        copy = state.instances.get(refused.instance)
        if copy is None or copy.phase is not READY or (copy.busy and not refused.drain):
            return False
        return may_leave(state, copy, self._least)

    def _gives(self, state: ClusterState, level: int, copy: Instance) -> int:
        """Bytes that each GPU of `copy` gets back if it leaves."""
        spec = state.models[copy.model]
        if not level or copy.phase is ASLEEP or not self._may_sleep(state, copy):
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
            sleeps = option.level(copy) if self._may_sleep(state, copy) else 0
            weights = state.models[copy.model].weights_bytes if sleeps == 1 else 0
            slept[node] = slept.get(node, 0) + weights
            if slept[node] > state.host_free_bytes(node):
                sleeps = 0
            if copy.busy:
                self._draining.told(state, copy, leaves_s(state, copy, sleeps))
            if sleeps:
                yield Sleep(name, sleeps, why, drain=copy.busy)
            else:
                yield Unload(name, why, drain=copy.busy)

    def _patience(self, state: ClusterState, lacking: Iterable[str]) -> list[Action]:
        """Ask for a tick when the next copy may leave that now may not."""
        stay_s, now_s = state.limits.min_residency_s, state.now_s
        ends = self._later_s
        if stay_s:
            ends = ends + [copy.ready_since_s + stay_s for copy in state.instances.values()]
        later = [end for end in ends if now_s - HAIR_S / 2 < end < float("inf")]
        if not later:
            return []
        due_s = min(later) + HAIR_S
        if now_s + HAIR_S / 2 < self._reminded_s <= due_s:  # a tick is still to come by then
            return []
        self._reminded_s = due_s
        soon = format_seconds(self._reminded_s - now_s)
        why = f"no room for {', '.join(lacking)}; in {soon} one more copy may leave"
        return [Remind(self._reminded_s, why)]


def _longest_wait_first(state: ClusterState) -> list[str]:
    return sorted(state.waiting_models(), key=lambda name: -state.demand[name].oldest_wait_s)


def _waiting(asked: Demand) -> str:
    return f"{asked.waiting} waiting, oldest {format_seconds(asked.oldest_wait_s)}"


def number(key: Any) -> str:
    """Print an eviction key (of a tuple, its first part)."""
    first = key[0] if isinstance(key, tuple) else key
    return f"{first:.1f}" if abs(first) >= 1000 else f"{first:.3g}"


def host_free_bytes(state: ClusterState, copy: Instance) -> int:
    """Room in the RAM of the node where `copy` is."""
    return state.host_free_bytes(state.gpus[copy.gpus[0]].node)
