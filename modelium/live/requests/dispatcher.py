"""Where requests arrive: at once to a ready engine, else into the request queue until there is one.

Owns what requests change (meters, demand, the request queue) and nothing that policies change.
Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelium.control.rules import fits_nowhere, never_fits
from modelium.control.state import Copy, State
from modelium.core import AWAKE, Demand, Phase
from modelium.errors import did_you_mean
from modelium.live.engines.backoff import Failures
from modelium.live.requests.gpu_busy import Busy
from modelium.live.requests.interface import RefusedError, Request, Seat, Waiting
from modelium.live.requests.meters import LiveDemand, LiveMeters
from modelium.live.requests.queue import Entry, RequestQueue
from modelium.live.requests.routing import router
from modelium.live.requests.slot import LiveSeat
from modelium.managers.engine import Engine

TELL_EVERY_S = 1.0

PLACES = 256
"""Requests at one engine that does not say how many it works on at a time."""


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Rules for requests."""

    router: str = "least_outstanding"
    queue_limit: int = 1000
    """Requests that may wait, per model."""
    max_wait_s: float = 600.0
    """How long one may wait for an engine, unless it says otherwise."""
    places: int | None = None
    """Requests at one engine at a time, or its `max_num_seqs` if that is less; the rest waits in
    fair order. None: its `max_num_seqs`, `PLACES` where it has none."""
    rate_window_s: float = 60.0


class Control(Protocol):
    """The control side: hears of what requests change."""

    def missed(self, model: str) -> None:
        """Requests wait and no instance is ready or on its way."""

    def left(self, model: str) -> None:
        """A request that waited for `model` has gone without a seat."""

    def fell_idle(self, copy: Copy) -> None:
        """An instance has answered its last request."""

    def suspect(self, copy: Copy, why: str) -> None:
        """A request found an engine broken."""

    def over(self, seat: LiveSeat, outcome: str, why: str) -> None:
        """A request that had a seat is over."""

    def refused(self, request: Request, error: RefusedError) -> None:
        """A request got no seat."""

    def cancelled(self, request: Request) -> None:
        """The client of a request went away before it had a seat."""

    def whole_bytes(self) -> Mapping[str, int]:
        """What each GPU offers when nobody else uses it."""

    def left_s(self, model: str) -> float | None:
        """Seconds until an instance is expected to be ready; None if none is on its way."""

    def stage_of(self, model: str) -> tuple[str, float]:
        """The stage of a model's load and the share of the load that is done."""


class Dispatcher:
    """Implements `Seats`, and `Hungry` for the conversation with the policy."""

    def __init__(
        self,
        state: State,
        engines: Mapping[str, Engine],
        failures: Failures,
        settings: DispatchSettings,
        control: Control,
    ) -> None:
        self.clock = state.clock
        self.settings = settings
        self.control = control
        self.failures = failures
        self.queue = RequestQueue(self.clock, settings.queue_limit)
        self.busy = Busy(self.clock)
        self.meters: dict[str, LiveMeters] = {}
        self.seats: set[LiveSeat] = set()
        self.suspects: set[str] = set()
        """Instances that are being looked at, because a request found them broken."""
        self.closed = ""
        """Why nobody is admitted any more."""
        self.going: dict[str, str] = {}
        """Models that are about to be removed, and why."""
        self.wanted: dict[str, str] = {}
        """Models that an operator wants loaded, and why; as good as a request that waits."""
        self.most_running: dict[str, int | None] = {}
        """Requests that one engine works on at a time, by model; None: it does not say."""
        self._granted: dict[str, asyncio.Future[None]] = {}
        self._state = state
        self._engines = engines
        self._demands: dict[str, LiveDemand] = {}
        self._route = router(settings.router)
        self._waker: asyncio.TimerHandle | None = None

    @property
    def max_wait_s(self) -> float:
        """How long a request may wait that does not say it."""
        return self.settings.max_wait_s

    # Books

    def change(self, settings: DispatchSettings) -> None:
        """Other rules from now on, but for the router; who waits already keeps its deadline."""
        self.settings = settings
        self.queue.limit = settings.queue_limit

    def demand(self, model: str) -> Demand:
        """The demand of a model; it is made at the first look."""
        if model not in self._demands:
            self._demands[model] = LiveDemand(
                model, self.clock, self.queue, self.n_ready, self.settings.rate_window_s
            )
        return self._demands[model]

    def forget(self, model: str) -> None:
        """A model is served no more."""
        self._demands.pop(model, None)
        self.most_running.pop(model, None)

    def open_meters(self, copy_id: str, model: str) -> LiveMeters:
        """The meters of a new instance."""
        meters = LiveMeters(self.clock, lambda: self._queued(model))
        self.meters[copy_id] = meters
        return meters

    def close_meters(self, copy_id: str) -> None:
        """An instance is gone; its last requests find out by themselves."""
        if not self.meters[copy_id].busy:
            del self.meters[copy_id]

    def waiting_models(self) -> list[str]:
        """Models with requests that no ready instance can take."""
        return [model for model in self.queue.models() if not self.n_ready(model)]

    def is_hungry(self, model: str) -> bool:
        """Somebody waits, and no instance is ready or on its way, and a load may be tried."""
        if model not in self._state.models or self.failures.rests(model):
            return False
        if not (self.queue.waiting(model) or model in self.wanted):
            return False
        return not any(copy.phase in AWAKE for copy in self._state.instances_of(model))

    def hungry_models(self) -> list[str]:
        """All such models, the longest wait first."""
        asked = dict.fromkeys([*self.queue.models(), *self.wanted])
        hungry = [model for model in asked if self.is_hungry(model)]
        return sorted(hungry, key=lambda model: -self.queue.oldest_wait_s(model))

    def wish(self, model: str, why: str) -> None:
        """An operator wants a model loaded: as good as a request that waits."""
        self.wanted[model] = why
        if self.is_hungry(model):
            self.control.missed(model)

    async def want(self, model: str, why: str) -> None:
        """Wish, and wait until it is ready. Raises RefusedError if it cannot be loaded."""
        if never := self._closed_to(model) or self.never(model):
            raise RefusedError(503, never)
        granted = self._granted.get(model)
        if granted is None:
            granted = self._granted[model] = asyncio.get_running_loop().create_future()
            granted.add_done_callback(_heard)
        self.wish(model, why)
        try:
            await asyncio.wait_for(asyncio.shield(granted), self.settings.max_wait_s)
        except TimeoutError:
            self.wanted.pop(model, None)
            self.control.left(model)
            late = f"{model} was not ready within {self.settings.max_wait_s:g} s"
            raise RefusedError(503, late, self.control.left_s(model)) from None

    # Requests

    async def seat(self, request: Request, told: Callable[[Waiting], None] | None = None) -> Seat:
        """Wait for a place at a ready engine. Raises RefusedError."""
        if not request.retries:
            request.arrival_s = self.clock()
        try:
            self._admit(request)
            copy = None if self.queue.waiting(request.model) else self._free_copy(request)
            return self._sit(request, copy, "") if copy else await self._wait(request, told)
        except RefusedError as error:
            self.control.refused(request, error)
            raise

    def give_up(self, request: Request, error: RefusedError) -> None:
        """A request whose seats were lost gets no other one."""
        self.control.refused(request, error)

    def cancelled(self, request: Request) -> None:
        """The client of a request that lost its seat went away before it took another one."""
        self.control.cancelled(request)

    def release(self, model: str, cold: str = "") -> None:
        """Seat what waits for `model`, as far as there is room at its ready engines."""
        if not self.n_ready(model):
            return
        self.wanted.pop(model, None)
        if (granted := self._granted.pop(model, None)) and not granted.done():
            granted.set_result(None)
        while (entry := self.queue.first(model)) is not None:
            copy = self._free_copy(entry.request)
            if copy is None:
                return
            self.queue.next(model)
            if not entry.future.done():
                entry.future.set_result(self._sit(entry.request, copy, cold))

    def leave(self, seat: LiveSeat, share_s: float, outcome: str, why: str) -> None:
        """A request is over; the next one may sit down."""
        self.seats.discard(seat)
        copy, meters = seat.copy, self.meters[seat.copy.id]
        idle, share = meters.end(share_s)
        if idle and copy.id not in self._state.instances:
            del self.meters[copy.id]
        self.busy.end(copy.gpus)
        seat.gpu_seconds = share * len(copy.gpus)
        if outcome != "lost":
            demand = self._demands.get(copy.model)
            if demand is not None:
                demand.prompt_tokens += seat.request.prompt_tokens
                demand.output_tokens += seat.request.output_tokens
        self.control.over(seat, outcome, why)
        self.release(copy.model)
        if idle and not meters.busy:
            self.control.fell_idle(copy)

    def cut(self, copy: Copy, why: str) -> None:
        """An engine was ended: whoever still waits for its answer waits in vain."""
        for seat in [seat for seat in self.seats if seat.copy is copy]:
            seat.end_call(f"{copy.id}: {why}")

    def refuse_all(
        self, model: str, status: int, why: str, retry_s: float | None = None, log: str = ""
    ) -> None:
        """Nobody who waits for `model` will be served.

        `log`, the end of an engine's log, is only for operators: it may tell of other people.
        """
        self.wanted.pop(model, None)
        if (granted := self._granted.pop(model, None)) and not granted.done():
            told = f"{why}; it wrote: {log}" if log else why
            granted.set_exception(RefusedError(status, told, retry_s))
        while (entry := self.queue.next(model)) is not None:
            if not entry.future.done():
                entry.future.set_exception(RefusedError(status, why, retry_s))

    def close(self, why: str) -> None:
        """Admit nobody any more, and send home who waits."""
        self.closed = why
        for model in {*self.queue.models(), *self._granted}:
            self.refuse_all(model, 503, why)

    def _admit(self, request: Request) -> None:
        name, models = request.model, self._state.models
        if why := self._closed_to(name):
            raise RefusedError(503, why)
        if name not in models:
            raise RefusedError(404, f"no model called {name!r}.{did_you_mean(name, models)}")
        trouble = self.failures.of(name)
        if trouble is not None and trouble.failed and not self.n_ready(name):
            left_s = self.failures.left_s(name)
            raise RefusedError(503, f"{name} cannot be loaded: {trouble.why}", left_s)
        if not request.retries:
            self.demand(name)
            self._demands[name].arrive()

    async def _wait(self, request: Request, told: Callable[[Waiting], None] | None) -> Seat:
        if why := self.never(request.model):
            raise RefusedError(503, why)
        wait_s = self.settings.max_wait_s if request.deadline_s is None else request.deadline_s
        left_s = self.control.left_s(request.model)
        entry = self.queue.enter(request, request.arrival_s + wait_s, retry_after_s=left_s)
        self._expire_in_time()
        try:
            if self.is_hungry(request.model):
                self.control.missed(request.model)
            if told is None:
                return await entry.future
            while not entry.future.done():
                told(self._standing(entry))
                await asyncio.wait((entry.future,), timeout=TELL_EVERY_S)
            return entry.future.result()
        except BaseException as error:  # cancelled, or whoever listens broke
            self.queue.leave(entry)
            future = entry.future
            if future.done() and not future.cancelled() and not future.exception():
                future.result().finish("cancelled")
            elif not isinstance(error, RefusedError):
                self.control.cancelled(request)
            self.control.left(request.model)
            raise

    def _closed_to(self, model: str) -> str:
        return self.closed or self.going.get(model, "")

    def never(self, model: str) -> str:
        """Why a model can never be loaded; as long as a GPU is lost, nobody can tell."""
        state = self._state
        if len(state.gpus) < len(state.all_gpus):
            return ""
        return never_fits(state, model, self.control.whole_bytes())

    def _standing(self, entry: Entry) -> Waiting:
        model = entry.request.model
        stage, share = self.control.stage_of(model)
        return Waiting(self.queue.position(entry), stage, share, self.control.left_s(model))

    def _sit(self, request: Request, copy: Copy, cold: str) -> LiveSeat:
        seat = LiveSeat(self, request, copy, self._engines[copy.id], cold)
        self.seats.add(seat)
        return seat

    def _free_copy(self, request: Request) -> Copy | None:
        places = self._places(request.model)
        free = [
            self._state.copy(copy.id)
            for copy in self._state.instances_of(request.model)
            if copy.phase is Phase.READY and copy.running < places and copy.id not in self.suspects
        ]
        return self._route(request, free) if free else None

    def _places(self, model: str) -> int:
        given = [n for n in (self.settings.places, self.most_running.get(model)) if n is not None]
        return min(given, default=PLACES)

    def n_ready(self, model: str) -> int:
        """How many instances of a model are ready; 0 if it is served no more."""
        if model not in self._state.models:
            return 0
        return sum(copy.phase is Phase.READY for copy in self._state.instances_of(model))

    def _queued(self, model: str) -> int:
        """Requests that wait though the model is ready, shared out among its ready instances."""
        ready = self.n_ready(model)
        return -(-self.queue.waiting(model) // ready) if ready else 0

    def _expire_in_time(self) -> None:
        """Refuse each request that waits too long, when its time has come."""
        due_s = self.queue.next_deadline_s()
        if self._waker is not None:
            self._waker.cancel()
        if due_s < float("inf"):
            loop = asyncio.get_running_loop()
            self._waker = loop.call_later(max(0.0, due_s - self.clock()), self._expire)

    def _expire(self) -> None:
        for entry in self.queue.expire(self.clock()):
            model = entry.request.model
            left_s, wait_s = self.control.left_s(model), self.clock() - entry.request.arrival_s
            why = f"no engine of {model} was ready within {wait_s:.0f} s"
            if model in self._state.models and (lack := fits_nowhere(self._state, model)):
                why += f": {lack} at the moment"
            if not entry.future.done():
                entry.future.set_exception(RefusedError(503, why, left_s))
        self._expire_in_time()


def _heard(granted: asyncio.Future[None]) -> None:
    """Whoever wished may have gone: a refusal that nobody hears is no error."""
    if not granted.cancelled():
        granted.exception()
