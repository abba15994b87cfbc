"""Loads, wakes, sleeps, unloads and moves of the fake cluster, and the memory they wait for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.core import Action, Done, Load, Move, Phase, Sleep, Unload, Wake

if TYPE_CHECKING:
    from modelium.testing.fake import FakeCluster


class FakeTransitions:
    """Carries out actions; what waits for memory gets it in the order of the actions."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._state = cluster.state
        self._names = count(1)
        self._held: dict[str, int] = {}
        """Bytes that each copy really has on each of its GPUs."""
        self._wanting: list[tuple[Copy, int, Callable[[], None]]] = []
        self._when_idle: dict[str, Callable[[], None]] = {}
        self._under_way: dict[str, Action] = {}

    def begin(self, action: Action) -> None:
        """Start a legal action."""
        match action:
            case Load(model, gpus):
                self._arrive(self._enter(action, model, gpus, action.kv_bytes), action)
            case Move(instance, gpus):
                old = self._state.copy(instance)
                new = self._enter(action, old.model, gpus, None)
                self._arrive(new, action, partial(self._leave_for, old, new, action))
            case Unload(instance):
                copy = self._close(action, Phase.LEAVING)
                self._later_idle(copy, partial(self._leave, copy, action))
            case Sleep(level=level):
                copy = self._close(action, Phase.SUSPENDING)
                size = self._state.models[copy.model].weights_bytes if level == 1 else 0
                self._state.change(copy, copy.phase, host_bytes=size, sleep_level=level)
                self._later_idle(copy, partial(self._doze, copy, action))
            case Wake(instance):
                copy = self._state.copy(instance)
                full = copy.awake_bytes_per_gpu
                after_s = self._state.costs.wake_s(copy.id)
                self._under_way[copy.id] = action
                self._state.change(copy, Phase.WAKING, bytes_per_gpu=full)
                self._take(copy, full, lambda: self._then(copy, after_s, self._ready, action))

    def fell_idle(self, name: str) -> None:
        """An instance has answered its last request: go on with what waited for that."""
        if then := self._when_idle.pop(name, None):
            then()

    def kill(self, copy: Copy, why: str) -> None:
        """An instance is lost at once; an action that was under way with it failed."""
        self._wanting = [want for want in self._wanting if want[0] is not copy]
        self._when_idle.pop(copy.id, None)
        self._cluster.send_back(copy)
        action = self._under_way.pop(copy.id, None)
        self._remove(copy)
        if action is not None:
            self._cluster.tell(Done(action, why, copy.id))

    # Steps

    def _enter(
        self, action: Action, model: str, gpus: tuple[str, ...], kv_bytes: int | None
    ) -> Copy:
        name = f"{model}#{next(self._names)}"
        node = self._state.gpus[gpus[0]].node
        copy = Copy(name, model, gpus, node, self._cluster.meter(name))
        copy.bytes_per_gpu = self._state.models[model].bytes_per_gpu(kv_bytes)
        self._held[name] = 0
        self._under_way[name] = action
        self._state.add(copy)
        return copy

    def _arrive(self, copy: Copy, action: Action, then: Callable[[], None] | None = None) -> None:
        after_s = self._state.costs.load_s(copy.model, copy.gpus)
        finish = self._ready if then is None else lambda copy, action: then()
        self._take(copy, copy.bytes_per_gpu, lambda: self._then(copy, after_s, finish, action))

    def _then(
        self, copy: Copy, after_s: float, step: Callable[[Copy, Action], None], action: Action
    ) -> None:
        def go_on() -> None:
            if self._state.instances.get(copy.id) is copy:  # else it was lost
                step(copy, action)

        self._cluster.at(self._cluster.now_s + after_s, go_on)

    def _ready(self, copy: Copy, action: Action) -> None:
        self._open(copy)
        self._done(copy, action)

    def _open(self, copy: Copy) -> None:
        spec = self._state.models[copy.model]
        self._state.change(copy, Phase.READY, host_bytes=0, sleep_level=0)
        self._state.ram[copy.node].cache(copy.model, spec.weights_bytes)
        meters = self._cluster.meters[copy.id]
        meters.idle_since_s = self._cluster.now_s
        if not meters.served:
            meters.last_used_s = self._cluster.now_s
        self._cluster.dispatch(copy.model)

    def _leave_for(self, old: Copy, new: Copy, action: Action) -> None:
        """The second half of a move: the new copy serves, the old one leaves."""
        self._open(new)
        self._under_way.pop(new.id)
        if self._state.instances.get(old.id) is not old:
            self._cluster.tell(Done(action, "", new.id))  # the old one was lost meanwhile
            return
        self._under_way[old.id] = action
        self._state.change(old, Phase.LEAVING)
        self._later_idle(old, partial(self._leave, old, action, new.id))

    def _close(self, action: Unload | Sleep, phase: Phase) -> Copy:
        copy = self._state.copy(action.instance)
        self._under_way[copy.id] = action
        self._state.change(copy, phase)
        return copy

    def _later_idle(self, copy: Copy, step: Callable[[], None]) -> None:
        if copy.busy:
            self._when_idle[copy.id] = step
        else:
            step()

    def _leave(self, copy: Copy, action: Action, name: str = "") -> None:
        def gone(copy: Copy, action: Action) -> None:
            self._under_way.pop(copy.id)
            del self._cluster.meters[copy.id]
            self._remove(copy)
            self._cluster.tell(Done(action, "", name or copy.id))

        self._then(copy, self._state.costs.unload_s(copy.id), gone, action)

    def _doze(self, copy: Copy, action: Action) -> None:
        def asleep(copy: Copy, action: Action) -> None:
            kept = self._state.models[copy.model].asleep_bytes
            self._state.change(copy, Phase.ASLEEP, bytes_per_gpu=kept)
            self._held[copy.id] = kept
            self._done(copy, action)
            self._grant()

        after_s = self._state.costs.sleep_s(copy.id, copy.sleep_level)
        self._then(copy, after_s, asleep, action)

    def _done(self, copy: Copy, action: Action) -> None:
        self._under_way.pop(copy.id)
        self._cluster.tell(Done(action, "", copy.id))

    # Memory

    def _remove(self, copy: Copy) -> None:
        self._state.remove(copy)
        del self._held[copy.id]
        self._grant()

    def _take(self, copy: Copy, bytes_per_gpu: int, then: Callable[[], None]) -> None:
        self._wanting.append((copy, bytes_per_gpu, then))
        self._grant()

    def _grant(self) -> None:
        """Give memory to those that wait for it; nobody overtakes another one on its GPUs."""
        used = dict.fromkeys(self._state.all_gpus, 0)
        for copy in self._state.instances.values():
            for gpu in copy.gpus:
                used[gpu] += self._held[copy.id]
        blocked: set[str] = set()
        granted = []
        for want in self._wanting:
            copy, size, _ = want
            more = size - self._held[copy.id]
            room = (self._state.all_gpus[gpu].memory_bytes - used[gpu] for gpu in copy.gpus)
            if blocked.isdisjoint(copy.gpus) and all(free >= more for free in room):
                granted.append(want)
                self._held[copy.id] = size
                for gpu in copy.gpus:
                    used[gpu] += more
            else:
                blocked.update(copy.gpus)
        self._wanting = [want for want in self._wanting if want not in granted]
        for _, _, then in granted:
            then()
