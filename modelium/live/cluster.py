"""The live cluster: real engines, on the same books and rules as the simulated one.

One event loop owns the state, so there are no locks; managers block in worker threads; everything
is in the journal before it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from modelium.control.lifecycle import decision
from modelium.control.policy_channel import PolicyChannel
from modelium.control.rules import may_begin, may_replace, refusal
from modelium.control.state import Copy
from modelium.core import (
    CANCELLED,
    Action,
    Decision,
    Done,
    Event,
    Fault,
    Instance,
    Load,
    Miss,
    Move,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.errors import ModeliumError
from modelium.live.context import LiveContext
from modelium.live.engines.actions import begin
from modelium.live.engines.gpu_memory import GpuMemory
from modelium.live.engines.gpus import Inventory
from modelium.live.engines.host_memory import HostWatch
from modelium.live.engines.model_files import WatchedFiles
from modelium.live.engines.progress import PendingLoads
from modelium.live.engines.transitions import Transitions
from modelium.live.engines.unwanted_loads import UnwantedLoads
from modelium.live.models import ModelRegistry
from modelium.live.records.events import as_news
from modelium.live.records.journal import Journal, JournalError
from modelium.live.requests.interface import RefusedError, Request
from modelium.live.requests.slot import LiveSeat
from modelium.live.settings import LiveInput
from modelium.managers.engine import Manager
from modelium.units import format_seconds

T = TypeVar("T")
THREADS = 64
"""Managers that block at the same time: one per transition, and the probes."""
KEPT_DECISIONS = 1000
"""In memory; the journal has all."""
MOST_LOG = 300
"""Letters of an engine's log in the answer to an operator."""


class LiveCluster(LiveContext):
    """A `Cluster` of real engines. Policies act through `start`, requests through `dispatcher`."""

    def __init__(
        self,
        given: LiveInput,
        managers: Mapping[str, Manager],
        inventory: Inventory,
        journal: Journal,
    ) -> None:
        """Must be made inside the running event loop."""
        super().__init__(given, managers, journal, self, self)
        self.decisions: deque[tuple[int, Decision]] = deque(maxlen=KEPT_DECISIONS)
        self._instant = 0.0
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._draining: dict[str, asyncio.Event] = {}
        self.host = HostWatch(self.state, given.host_memory, given.host_reserve_bytes)
        self.memory = GpuMemory(self, inventory, lambda model: self.registry.correct(model))
        self.pending_loads = PendingLoads(self)
        self.unwanted_loads = UnwantedLoads(self, self.pending_loads)
        self.files = WatchedFiles(self, given.renew, lambda served: self.registry.put(served))
        self.registry = ModelRegistry(self, self.files)
        self._transitions = Transitions(self, self.memory, self.pending_loads, self.files)
        self.channel = PolicyChannel(
            self.dispatcher,
            lambda: self._instant,
            self._soon,
            lambda gpus: may_begin(self.state, self.state.limits, gpus),
        )
        for served in given.served:
            self.registry.put(served)

    # The interface of `modelium.core.Cluster`

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` of every event from now on."""

        def heard(event: Event) -> None:
            self.watchers.events.tell(event)
            hear(event)

        self.channel.listen(heard)

    def start(self, action: Action) -> None:
        """Begin `action` and return at once; `Done` follows, also when it is refused."""
        if isinstance(action, Remind):
            self.loop.call_later(max(0.0, action.at_s - self.now_s()), self.tell, Tick())
            return
        if isinstance(action, Sleep):
            self.host.look()  # what was free a second ago may be taken
        why = refusal(self.state, action, self.state.limits)
        self._carry_out(action, why or self._rests(action))

    def _rests(self, action: Action) -> str:
        """Why a model must not be loaded now, whatever plans want: it failed, or it is to go."""
        match action:
            case Load(model):
                pass
            case Move(instance):
                model = self.state.instances[instance].model
            case _:
                return ""
        if why := self.dispatcher.going.get(model):
            return why
        left_s = self.failures.left_s(model)
        return f"{model} rests after a failed load for {format_seconds(left_s)}" if left_s else ""

    def replace(self, copy: Copy, gpus: tuple[str, ...], reason: str) -> Move:
        """Load another copy on `gpus`, which may be its own; `copy` serves until that is ready.

        As `start`, but operators may do it to a pinned copy, too.
        """
        action = Move(copy.id, gpus, reason)
        self._carry_out(action, may_replace(self.state, copy, gpus, self.state.limits))
        return action

    def dismiss(self, copy: Copy, reason: str) -> Unload:
        """Let a copy finish its requests and go, though it be pinned or needed."""
        action = Unload(copy.id, reason, drain=True)
        here = copy.phase in (Phase.READY, Phase.ASLEEP)
        self._carry_out(action, "" if here else f"{copy.id} is {copy.phase}")
        return action

    def _carry_out(self, action: Action, why: str) -> None:
        """Begin an action, or with `why` refuse it."""
        try:
            row, line = self._write(action, why)
        except JournalError as error:  # what cannot be accounted for is not done
            why, (row, line) = str(error), (0, decision(self.state, action, str(error)))
            self._refuse(line.model, why)
        if why:
            self.tell_news("decision", **as_news(line))
            self.channel.answer(Done(action, why))
            return
        for_requests = isinstance(action, Load) and self.dispatcher.is_hungry(action.model)
        copy, steps = begin(self, self._transitions, action, line)
        if for_requests:
            self.unwanted_loads.begins(copy)
        self.tell_news("decision", **as_news(line))
        self._under_way[copy.id] = self.spawn(self._watch(action, row, line, copy, steps))

    async def _watch(
        self,
        action: Action,
        row: int,
        line: Decision,
        copy: Copy,
        steps: Coroutine[Any, Any, None],
    ) -> None:
        """Run one transition to its end, good or bad, and say so."""
        error = ""
        try:
            await steps
        except Exception as failure:  # also a manager's own mistakes: nobody may wait for ever
            known = isinstance(failure, ModeliumError)
            told = str(failure) if known else f"{type(failure).__name__}: {failure}"
            error = self.lost.get(copy.id, "") or told
            await self._failed(action, copy, failure, error)
        self._under_way.pop(copy.id, None)
        self.pending_loads.over(copy)
        self.unwanted_loads.over(copy)
        self.pulse()
        line.end_s, line.error = self.now_s(), error
        with contextlib.suppress(JournalError):  # counted there; done is done
            self.journal.carried_out(row, line)
        self.tell_news("done", **as_news(line))
        self.tell(Done(action, error, copy.id))

    async def _failed(self, action: Action, copy: Copy, failure: Exception, why: str) -> None:
        """Strike out what did not come up, sleep or wake, and remember the failure of loads."""
        loads = isinstance(action, Load | Move | Wake) and copy.id not in self.lost
        if isinstance(failure, JournalError):  # not the model's fault
            self._refuse(copy.model, why)
        elif loads:
            oom = getattr(failure, "out_of_memory", False)
            log, final = getattr(failure, "log", ""), getattr(failure, "final", False)
            trouble = self.failures.note(copy.model, copy.gpus, why, log=log, oom=oom, final=final)
            if oom:
                self.registry.needs_more(copy)
            if trouble.failed:
                words = f"{copy.model} cannot be loaded: {why}"
                left_s = self.failures.left_s(copy.model)
                self._refuse(copy.model, words, left_s, trouble.log.strip()[-MOST_LOG:])
            wait_s = self.failures.left_s(copy.model)
            self.loop.call_later(wait_s + 0.01, self.reconsider)
        if copy.id in self.state.instances:
            self.lifecycle.close(copy, Phase.LEAVING)
            await self._transitions.see_off(copy, why)
        self.lost.pop(copy.id, None)

    def _refuse(self, model: str, why: str, retry_s: float | None = None, log: str = "") -> None:
        """Send home who waits for a model, unless another instance serves it."""
        if not self.dispatcher.n_ready(model):
            self.dispatcher.refuse_all(model, 503, why, retry_s, log)

    # What is told to whom

    def tell(self, event: Event) -> None:
        """Let the policy hear `event`, then what follows from it at this instant."""
        self._instant = self.now_s()
        self.channel.tell(event)

    def missed(self, model: str) -> None:
        """Requests wait and no instance is ready or on its way."""
        self.tell(Miss(model))

    def fell_idle(self, copy: Copy) -> None:
        """An instance has answered its last request."""
        if idle := self._draining.pop(copy.id, None):
            idle.set()
        elif copy.phase is Phase.READY and self.dispatcher.hungry_models():
            self._instant = self.now_s()
            self.channel.fell_idle(copy)

    def suspect(self, copy: Copy, why: str) -> None:
        """A request found an engine broken: look at it now."""
        if copy.id not in self.dispatcher.suspects:
            self.dispatcher.suspects.add(copy.id)
            self.spawn(self._clear_up(copy, why))

    async def _clear_up(self, copy: Copy, why: str) -> None:
        try:
            await self.probe(copy, why)
        finally:
            self.dispatcher.suspects.discard(copy.id)
            if copy.phase is Phase.READY:
                self.dispatcher.release(copy.model)

    def left(self, model: str) -> None:
        """A request that waited for a seat waits no more."""
        self.unwanted_loads.look(model)

    def over(self, seat: LiveSeat, outcome: str, why: str) -> None:
        """A request that had a seat is over."""
        self.watchers.over.tell(seat, outcome, why)

    def refused(self, request: Request, error: RefusedError) -> None:
        """A request got no seat."""
        self.watchers.refused.tell(request, error)

    def cancelled(self, request: Request) -> None:
        """The client of a request went away before it had a seat."""
        self.watchers.cancelled.tell(request)

    def whole_bytes(self) -> Mapping[str, int]:
        """What each GPU offers when nobody else uses it."""
        return self.memory.whole_bytes

    def left_s(self, model: str) -> float | None:
        """Seconds until an instance is expected to be ready; None if nobody can tell."""
        return self.pending_loads.left_s(model)

    def stage_of(self, model: str) -> tuple[str, float]:
        """The stage of a model's load and the share of the load that is done."""
        return self.pending_loads.stage_of(model)

    def reconsider(self) -> None:
        """What stood in the way of a load has gone, and no event told of it.

        The policy is asked again for whoever waits, and where copies must always be.
        """
        self.tell(Tick())
        self.channel.offer()

    def _soon(self, say: Callable[[], None]) -> None:
        self.loop.call_soon(say)

    # How requests reach instances, for `Lifecycle`

    def open(self, instance: Copy, cold: str) -> None:
        """It takes requests from now on, first those that waited for it."""
        meters = self.dispatcher.meters[instance.id]
        meters.idle_since_s = meters.last_used_s = self.now_s()
        self.facts.seen.add((instance.model, instance.node))
        self.failures.forget(instance.model)
        self.pending_loads.over(instance)
        self.dispatcher.release(instance.model, cold)

    def close(self, instance: Copy) -> None:
        """It takes no more requests: the dispatcher looks at its phase."""

    def forget(self, instance: Copy) -> None:
        """It is gone."""
        self.engines.pop(instance.id, None)
        self.settings_changed.pop(instance.id, None)
        self.files.forget(instance)
        self.dispatcher.close_meters(instance.id)
        self.lost.pop(instance.id, None)

    # Idle, lost and stopped instances

    def idle_event(self, copy: Copy) -> asyncio.Event:
        """Happens when a copy that takes no more requests has answered its last."""
        return self._draining.setdefault(copy.id, asyncio.Event())

    def kill(self, copy: Copy, why: str, news: str = "lost") -> None:
        """A copy is lost at once, in whatever phase; what it worked on is sent again or fails."""
        if copy.id in self.lost:
            return
        self.lost[copy.id] = why
        if copy.id in self._under_way:  # its transition finds out, and strikes it out
            if granted := self.waits_for_room.get(copy.id):
                granted.cancel()
            self.pending_loads.cancel(copy)
            if idle := self._draining.pop(copy.id, None):
                idle.set()
        else:
            self.lifecycle.close(copy, Phase.LEAVING)
            self.spawn(self._transitions.see_off(copy, why))
        self.tell_news(news, instance=copy.id, model=copy.model, why=why)

    def cancel(self, copy: Copy, why: str) -> None:
        """Stop a load or wake under way. It is no failure: the model may be loaded again at once.

        A wake that is stopped ends the copy: nobody knows what it holds where.
        """
        self.kill(copy, f"{CANCELLED}{why}", "cancelled")

    async def probe(self, copy: Copy, why: str = "") -> None:
        """Look at an engine; if it cannot serve, it is lost."""
        engine = self.engines.get(copy.id)
        if engine is None or copy.phase not in (Phase.READY, Phase.ASLEEP):
            return
        trouble = await self.call(self.managers[engine.runtime].trouble, engine)
        if trouble and copy.phase in (Phase.READY, Phase.ASLEEP):
            self.kill(copy, f"{trouble}; {why}" if why else trouble)
            self.tell(Fault(copy.id, trouble))

    def transitions_under_way(self) -> bool:
        """Something loads, wakes, sleeps, moves or leaves."""
        return bool(self._under_way)

    def drains(self, copy: Instance) -> bool:
        """A copy waits for its last requests."""
        return copy.id in self._draining

    # The log

    def _write(self, action: Action, why: str) -> tuple[int, Decision]:
        """Log a decision before it is carried out. Raises JournalError."""
        line = decision(self.state, action, why)
        self.channel.acted()
        row = self.journal.decided(line)
        self.decisions.append((row, line))
        return row, line
