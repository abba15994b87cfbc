"""From where copies are to where they should be: ordered actions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from modelium.core import AWAKE, Action, ClusterState, Instance, Load, Move, Phase, Unload, Wake
from modelium.policies.toolkit.eviction import Survey, least_copies
from modelium.units import counted, format_seconds

Target = Mapping[str, Sequence[tuple[str, ...]]]
"""The GPUs of each copy that a model should have; a model that is absent should have none."""


def diff(
    state: ClusterState,
    target: Target,
    *,
    tidy: bool = True,
    reasons: Mapping[str, str] | None = None,
    kv_bytes: Mapping[str, int] | None = None,
    keep: Collection[str] = (),
) -> list[Action]:
    """Say what to do now to get from `state` to `target`, in order: unloads first.

    Copies that are right stay; a sleeping one in the right place is woken; one that only changes
    GPUs is moved if there is room for both, so that it serves on; busy ones are drained. With
    `tidy` every other ready copy leaves, without it only those whose room is needed; sleeping
    copies always stay while their room is not needed. What cannot begin yet (a GPU that is
    loading, a copy in its minimum residency) is left out: ask again after the next `Done`.
    `reasons` says by model what the plan gains, `kv_bytes` the KV pool of a new copy, over all its
    GPUs, where that is not the model's own; `keep` names copies that stay as they are, though the
    target does not have them (asleep, say).
    """
    steps = _Steps(state, target, reasons or {}, kv_bytes or {}, keep)
    if tidy:
        steps.tidy()
    arrivals = list(steps.arrivals())
    return [*steps.leaving, *arrivals]


class _Steps:
    """The books of one `diff`: what is missing, what is too much, and the room so far."""

    def __init__(
        self,
        state: ClusterState,
        target: Target,
        reasons: Mapping[str, str],
        kv_bytes: Mapping[str, int],
        keep: Collection[str],
    ) -> None:
        survey = Survey(state)
        self.state, self.reasons, self.rooms = state, reasons, survey.rooms
        self.kv_bytes, self.keep = kv_bytes, keep
        self.starts = survey.starts
        self.leaving: list[Action] = []
        self.missing: list[tuple[str, tuple[str, ...]]] = []
        self.asleep: list[Instance] = []
        self.surplus: list[Instance] = []
        self.staying: dict[str, list[Instance]] = {}
        for model in state.models:
            self._compare(model, [tuple(gpus) for gpus in target.get(model, ())])
        # The room of idle copies is taken first, that of busy ones only when they have finished.
        self.surplus.sort(key=lambda copy: (copy.busy, copy.last_used_s, copy.id))

    def _compare(self, model: str, wanted: list[tuple[str, ...]]) -> None:
        copies = [c for c in self.state.instances_of(model) if c.phase is not Phase.LEAVING]
        self.staying[model] = list(copies)
        places = [frozenset(gpus) for gpus in wanted]
        for copy in copies:
            place = frozenset(copy.gpus)
            if place not in places:
                if copy.id not in self.keep:
                    self.surplus.append(copy)
                continue
            at = places.index(place)
            del places[at], wanted[at]
            if copy.phase is Phase.ASLEEP:
                self.asleep.append(copy)
        self.missing += [(model, gpus) for gpus in wanted]

    def tidy(self) -> None:
        """Drop all ready copies that the target does not want and that will not be moved."""
        changing = {model for model, _ in self.missing}
        for copy in list(self.surplus):
            if copy.phase is Phase.READY and copy.model not in changing and self._droppable(copy):
                self._drop(copy, "the plan")

    def arrivals(self) -> Iterator[Action]:
        """Wakes, moves and loads for which there is room, once what is in their way has left."""
        costs = self.state.costs
        for copy in self.asleep:
            need = copy.awake_bytes_per_gpu - copy.bytes_per_gpu
            if self._take(copy.model, copy.gpus, need):
                yield Wake(copy.id, self._why(copy.model, "wakes", costs.wake_s(copy.id)))
        for model, gpus in self.missing:
            spec = self.state.models[model]
            if self.starts <= 0 or any(gpu not in self.rooms for gpu in gpus):
                continue
            if not all(map(spec.may_use, gpus)):  # nobody leaves for what would be refused
                continue
            need = spec.bytes_per_gpu()
            old = self._movable(model)
            if old and all(self.rooms[gpu] >= need for gpu in gpus):
                self._take(model, gpus, need)
                self.surplus.remove(old)
                yield Move(old.id, gpus, self._why(model, "moves", costs.load_s(model, gpus)))
                continue
            kv_bytes = self.kv_bytes.get(model)
            need = spec.bytes_per_gpu(kv_bytes)
            if self._allowed(model, gpus) and self._take(model, gpus, need):
                why = self._why(model, "loads", costs.load_s(model, gpus))
                yield Load(model, gpus, why, kv_bytes)

    def _take(self, model: str, gpus: tuple[str, ...], need: int) -> bool:
        """Give these GPUs to one arrival, dropping surplus copies until it fits."""
        if self.starts <= 0 or any(gpu not in self.rooms for gpu in gpus):
            return False
        lack = {gpu: need - self.rooms[gpu] for gpu in gpus}
        dropped = []
        for copy in self.surplus:
            if any(lack.get(gpu, 0) > 0 for gpu in copy.gpus) and self._droppable(copy):
                dropped.append(copy)
                for gpu in copy.gpus:
                    lack[gpu] = lack.get(gpu, 0) - copy.bytes_per_gpu
        if any(lack[gpu] > 0 for gpu in gpus):
            return False
        for copy in dropped:
            self._drop(copy, model)
        for gpu in gpus:
            del self.rooms[gpu]  # one arrival a GPU at a time; the next one after its Done
        self.starts -= 1
        return True

    def _allowed(self, model: str, gpus: tuple[str, ...]) -> bool:
        """One more copy is legal there, if need be after an own surplus copy has been dropped."""
        spec, staying = self.state.models[model], self.staying[model]
        node = self.state.gpus[gpus[0]].node
        for copy in [c for c in self.surplus if c.model == model and self._droppable(c)]:
            beside = spec.spread and self.state.gpus[copy.gpus[0]].node == node
            if beside or len(staying) >= spec.max_replicas:
                self._drop(copy, model)
        beside = spec.spread and any(self.state.gpus[c.gpus[0]].node == node for c in staying)
        return len(staying) < spec.max_replicas and not beside

    def _movable(self, model: str) -> Instance | None:
        copies = (c for c in self.surplus if c.model == model and c.phase is Phase.READY)
        return next((c for c in copies if self._may_go(c)), None)

    def _may_go(self, copy: Instance) -> bool:
        state = self.state
        stayed_s = state.now_s - copy.ready_since_s
        young = copy.phase is Phase.READY and stayed_s < state.limits.min_residency_s
        return not (young or state.models[copy.model].pinned)

    def _droppable(self, copy: Instance) -> bool:
        """It may leave now: no other copy of its model is on the way to replace it."""
        awake = [other.phase for other in self.staying[copy.model] if other.phase in AWAKE]
        if copy.phase is Phase.READY:
            least = least_copies(self.state.models[copy.model])
            replaced = all(phase is Phase.READY for phase in awake)
            return replaced and len(awake) > least and self._may_go(copy)
        return copy.phase is Phase.ASLEEP and self._may_go(copy)

    def _drop(self, copy: Instance, room_for: str) -> None:
        self.surplus.remove(copy)
        self.staying[copy.model].remove(copy)
        for gpu in copy.gpus:
            if gpu in self.rooms:
                self.rooms[gpu] += copy.bytes_per_gpu
        using = f"idle {format_seconds(self.state.now_s - copy.idle_since_s)}"
        if copy.busy:
            using = f"drains {counted(copy.running + copy.waiting, 'request')}"
        why = self.reasons.get(copy.model, f"not in the plan, {using}; makes room for {room_for}")
        self.leaving.append(Unload(copy.id, why, drain=copy.busy))

    def _why(self, model: str, verb: str, cost_s: float) -> str:
        default = f"the plan wants it here; {verb} in {format_seconds(cost_s)}"
        return self.reasons.get(model, default)
