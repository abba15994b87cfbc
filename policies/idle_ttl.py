"""Time to live: unload what was idle for a while (the rule of the first Modelium)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from modelium.core import (
    Action,
    ClusterState,
    Done,
    Event,
    Instance,
    Miss,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
)  # fmt: skip
from modelium.policies.lru import Lru
from modelium.policies.toolkit.eviction import may_leave
from modelium.policies.toolkit.on_demand import HAIR_S, host_free_bytes
from modelium.units import format_seconds

CHECK_S = 60.0
BUSY_S = 1e-3
"""How often at most to look whether a busy copy is still busy (matters for timeouts near 0)."""


class IdleTtl(Lru):
    """Unload a copy idle for `idle_s` if its model is asked less than `qps_min` times a second.

    Idle counts from the end of the last request, and timeouts are exact. If room is needed
    earlier, the least recently used copy leaves. Optionally in two tiers: asleep after `sleep_s`.

    idle_s: unload after this long (published: 45 s Prism, 300 s kvcached, 600 s FaaS).
    qps_min: requests per second that keep an idle copy loaded; inf: only idle time counts.
    window_s: over which those are counted; none: 4 * idle_s. With idle_s or less, every idle copy
        has rate 0 and qps_min would have no effect.
    sleep_s: put to sleep after this long (level 1, or sleep_level if that is 2).
    check_s: how often to look again at a copy that is idle but asked too often to leave.
    Source: keep-alive as in FaaS platforms; defaults of Modelium's first configuration.
    """

    def __init__(
        self,
        *,
        idle_s: float = 3600.0,
        qps_min: float = 0.1,
        window_s: float | None = None,
        sleep_s: float = float("inf"),
        check_s: float = CHECK_S,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._idle_s, self._sleep_s, self._qps_min = idle_s, sleep_s, qps_min
        self._window_s = 4 * idle_s if window_s is None else window_s
        self._check_s = check_s
        self.sleeps = self.sleeps or sleep_s < float("inf")
        self._tier = 2 if options.get("sleep_level") == 2 else 1
        self._due_s: dict[str, float] = {}
        self._counts: dict[str, deque[tuple[float, int]]] = {}

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Answer as `lru` does, then look at the copies whose time may be up."""
        actions = list(super().decide(state, event))
        if isinstance(event, Miss):
            return actions
        touched = {getattr(action, "instance", "") for action in actions}
        for copy in self._due(state, event):
            if copy.id not in touched and copy.phase in (Phase.READY, Phase.ASLEEP):
                actions += self._look(state, copy)
        return actions

    def _due(self, state: ClusterState, event: Event) -> list[Instance]:
        if isinstance(event, Done):  # what has just become ready, or fallen asleep
            return [state.instances[event.instance]] if event.instance in state.instances else []
        if not isinstance(event, Tick):
            return []
        self._due_s = {name: due for name, due in self._due_s.items() if name in state.instances}
        late_s = state.now_s + HAIR_S
        return [c for c in state.instances.values() if self._due_s.get(c.id, 0.0) <= late_s]

    def _look(self, state: ClusterState, copy: Instance) -> Iterator[Action]:
        """Let `copy` go if its time is up, else ask to be reminded when it may be."""
        now_s, idle_s = state.now_s, state.now_s - copy.idle_since_s
        asleep = copy.phase is Phase.ASLEEP
        first_s = self._idle_s if asleep else min(self._sleep_s, self._idle_s)
        rate = self._rate(state, copy.model)
        if copy.busy:
            yield from self._again(copy, now_s + max(first_s, BUSY_S))
        elif idle_s < first_s - HAIR_S:
            yield from self._again(copy, copy.idle_since_s + first_s)
        elif not may_leave(state, copy, self._least):
            yield from self._again(copy, now_s + self._check_s)
        elif idle_s < self._idle_s - HAIR_S:
            yield from self._again(copy, copy.idle_since_s + self._idle_s)
            spec = state.models[copy.model]
            room = self._tier == 2 or spec.weights_bytes <= host_free_bytes(state, copy)
            if spec.can_sleep and room:
                yield Sleep(copy.id, self._tier, f"idle {format_seconds(idle_s)}, asleep first")
        elif rate >= self._qps_min:
            yield from self._again(copy, now_s + self._check_s)
        else:
            limit = f"limits {format_seconds(self._idle_s)} and {self._qps_min:g}/s"
            yield Unload(copy.id, f"idle {format_seconds(idle_s)}, {rate:.3g} requests/s; {limit}")

    def _again(self, copy: Instance, at_s: float) -> Iterator[Action]:
        self._due_s[copy.id] = at_s
        yield Remind(at_s, f"{copy.id} may be idle for too long then")

    def _rate(self, state: ClusterState, model: str) -> float:
        """Requests per second over the window, as far as it was watched."""
        counts = self._counts.setdefault(model, deque())
        counts.append((state.now_s, state.demand[model].arrivals))
        while len(counts) > 1 and counts[1][0] <= state.now_s - self._window_s:
            counts.popleft()
        return (counts[-1][1] - counts[0][1]) / self._window_s if self._window_s else 0.0
