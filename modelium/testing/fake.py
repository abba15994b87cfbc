"""A small cluster that is honest about the rules and simple about everything else.

It keeps the same books and obeys the same rules as the real ones. An instance serves its requests
first come first served, `slots` at a time, each in a fixed time; a transition takes what `Costs`
says. Everything happens in one heap of moments, so runs are exact and repeatable.

Its queue for memory and its offers of misses are its own, on purpose: `check_policy` runs on it, so
a fault in the policy channel or in the memory ledger cannot hide what a policy does wrong.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from modelium.control.costs import ConfiguredFacts, StagedCosts
from modelium.control.rules import refusal
from modelium.control.state import Copy, State
from modelium.core import (
    AWAKE,
    Action,
    Demand,
    Done,
    Event,
    Fault,
    Gpu,
    Limits,
    Miss,
    Model,
    Node,
    Phase,
    Remind,
    Tick,
)  # fmt: skip
from modelium.errors import PolicyError
from modelium.testing.fake_transitions import FakeTransitions

PATIENCE = 10_000
"""Events at one instant after which a policy is said to make no progress."""


@dataclass(slots=True)
class FakeMeters:
    """What one instance did, and the requests it has."""

    slots: int
    active: list[float] = field(default_factory=list)
    """Service times of the requests that are being served."""
    queue: deque[float] = field(default_factory=deque)
    """Service times of those that wait here."""
    served: int = 0
    last_used_s: float = float("-inf")
    idle_since_s: float = float("-inf")

    @property
    def running(self) -> int:
        return len(self.active)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def busy(self) -> bool:
        return bool(self.active or self.queue)


@dataclass(slots=True)
class FakeDemand:
    """What was asked of one model, and the requests that wait for an instance."""

    clock: Callable[[], float]
    arrivals: int = 0
    queue: deque[tuple[float, float]] = field(default_factory=deque)
    """(arrival, service time) of each."""
    last_arrival_s: float = float("-inf")
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def oldest_wait_s(self) -> float:
        return self.clock() - self.queue[0][0] if self.queue else 0.0

    @property
    def request_rate_per_s(self) -> float:
        return self.arrivals / max(self.clock(), 1.0)


class FakeCluster:
    """A `Cluster` for tests and conformance suites; `submit`, `run` and `lose` make it live."""

    def __init__(
        self,
        models: Iterable[Model],
        gpus: Iterable[Gpu],
        nodes: Iterable[Node],
        *,
        limits: Limits | None = None,
        facts: ConfiguredFacts | None = None,
        service_s: float = 1.0,
        slots: int = 1,
        passes_s: float = 0.0,
    ) -> None:
        """`passes_s`: the most that the clock goes on whenever it is read, as it does live."""
        self.now_s = 0.0
        self._passes_s, self._reads = passes_s, count()
        self.limits = limits or Limits()
        self.facts = facts or ConfiguredFacts()
        self.service_s = service_s
        self.submitted = self.finished = 0
        self.longest_wait_s, self.longest_waited = 0.0, ""
        """Of all requests that got an instance, and for which model it was."""
        listed = {model.name: model for model in models}
        self.demand = {name: FakeDemand(self._read_clock) for name in listed}
        asked: dict[str, Demand] = {**self.demand}
        self.state = State(
            listed,
            {node.id: node for node in nodes},
            {gpu.id: gpu for gpu in gpus},
            asked,
            self._read_clock,
            lambda: [name for name, d in self.demand.items() if d.queue],
            self.limits,
        )
        self.state.costs = StagedCosts(self.state, self.facts, lambda *request: service_s)
        self.works = FakeTransitions(self)
        self.meters: dict[str, FakeMeters] = {}
        self._slots = slots
        self._hear: Callable[[Event], None] = lambda event: None
        self._outbox: deque[Event] = deque()
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._hasty = (0.0, 0)

    # The interface of `modelium.core.Cluster`

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` of every event from now on."""
        self._hear = hear

    def start(self, action: Action) -> None:
        """Begin `action` and return at once; `Done` follows, also when it is refused."""
        if isinstance(action, Remind):
            self.at(max(action.at_s, self.now_s), lambda: self.tell(Tick()))
        elif why := refusal(self.state, action, self.limits):
            self.tell(Done(action, why))
        else:
            self.works.begin(action)

    # What happens to it from outside

    def begin(self, every_s: float | None = None) -> None:
        """Send the first tick, and from then on one every `every_s`."""
        self.tell(Tick())
        if every_s is not None:
            self.at(self.now_s + every_s, lambda: self.begin(every_s))

    def submit(self, model: str, service_s: float | None = None) -> None:
        """A request for `model` arrives now."""
        asked = self.demand[model]
        asked.arrivals += 1
        asked.last_arrival_s = self.now_s
        self.submitted += 1
        asked.queue.append((self.now_s, self.service_s if service_s is None else service_s))
        self.dispatch(model)
        if self._in_need(model):
            self.tell(Miss(model))

    def at(self, at_s: float, happens: Callable[[], None]) -> None:
        """Let something happen at a time, after what was planned for it before."""
        heapq.heappush(self._moments, (at_s, next(self._order), happens))

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        self.run_until(self.now_s + seconds)

    def run_until(self, end_s: float) -> None:
        """Let time pass until `end_s`, what happens then included."""
        self._deliver()
        while self._moments and self._moments[0][0] <= end_s:
            at_s, _, happens = heapq.heappop(self._moments)
            self.now_s = max(self.now_s, at_s)
            happens()
            self._deliver()
        self.now_s = max(self.now_s, end_s)

    def _read_clock(self) -> float:
        self.now_s += self._passes_s * (next(self._reads) % 5) / 4
        return self.now_s

    def lose(self, gpu: str) -> None:
        """A GPU stops working; its instances are gone, their requests wait again."""
        self.state.lose(gpu)
        for copy in list(self.state.instances_on(gpu)):
            self.works.kill(self.state.copy(copy.id), f"{gpu} was lost")
        self.tell(Fault(gpu, "lost"))

    def regain(self, gpu: str) -> None:
        """A GPU works again."""
        self.state.regain(gpu)
        self.tell(Fault(gpu, "is back"))

    # Events

    def tell(self, event: Event) -> None:
        """Queue an event; it is heard when whatever happens now is over."""
        self._outbox.append(event)

    def _deliver(self) -> None:
        while self._outbox:
            event = self._outbox.popleft()
            if isinstance(event, Miss) and not self._in_need(event.model):
                continue
            self._check_haste(event)
            self._hear(event)
            refused = isinstance(event, Done) and event.error and not event.instance
            if isinstance(event, Done | Fault) and not refused:
                self.offer()

    def _check_haste(self, event: Event) -> None:
        at_s, told = self._hasty
        self._hasty = (self.now_s, told + 1 if at_s == self.now_s else 0)
        if told > PATIENCE:
            raise PolicyError(f"asked {PATIENCE} times at {at_s} s, at last {event}, and no end")

    def offer(self) -> None:
        """Offer every waiting model again, unless an instance is on its way."""
        self._outbox.extend(Miss(model) for model in self.demand if self._in_need(model))

    def _in_need(self, model: str) -> bool:
        copies = self.state.instances_of(model)
        return bool(self.demand[model].queue) and not any(c.phase in AWAKE for c in copies)

    # Requests

    def meter(self, name: str) -> FakeMeters:
        """Make the meters of a new instance."""
        self.meters[name] = FakeMeters(self._slots)
        return self.meters[name]

    def dispatch(self, model: str) -> None:
        """Send all waiting requests of `model` to ready instances, if there are any."""
        ready = [c for c in self.state.instances_of(model) if c.phase is Phase.READY]
        queue = self.demand[model].queue
        while ready and queue:
            copy = min(ready, key=lambda c: c.running + c.waiting)
            meters = self.meters[copy.id]
            arrived_s, service_s = queue.popleft()
            if (waited_s := self.now_s - arrived_s) > self.longest_wait_s:
                self.longest_wait_s, self.longest_waited = waited_s, model
            meters.queue.append(service_s)
            meters.served += 1
            meters.last_used_s = self.now_s
            self._serve(copy.id)

    def send_back(self, copy: Copy) -> None:
        """The requests of a lost instance wait for another one."""
        meters = self.meters.pop(copy.id)
        lost = [*meters.active, *meters.queue]
        self.demand[copy.model].queue.extendleft((self.now_s, each) for each in reversed(lost))

    def _serve(self, name: str) -> None:
        meters = self.meters[name]
        while meters.queue and len(meters.active) < meters.slots:
            service_s = meters.queue.popleft()
            meters.active.append(service_s)
            self.at(self.now_s + service_s, partial(self._answered, name, service_s))

    def _answered(self, name: str, service_s: float) -> None:
        if name not in self.meters:
            return  # the instance was lost in the meantime
        meters = self.meters[name]
        meters.active.remove(service_s)
        self.finished += 1
        self._serve(name)
        if not meters.busy:
            meters.idle_since_s = self.now_s
            self.works.fell_idle(name)
            self.offer()
