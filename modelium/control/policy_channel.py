"""What a cluster tells its policy, and when; the same in simulation and live.

Events are heard one at a time, in order, and never before `Cluster.start` has returned. After every
change `Miss` is offered again to the models that wait in vain, the longest wait first. Once some
have been declined in a row, the rest is asked at the next change, from a turning start; where no
load may begin, since others are under way there, the offer waits for one of them to end. So each
model is asked for again and again; that a busy instance makes way at last is up to the policy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from modelium.core import Done, Event, Fault, Instance, Miss, Phase
from modelium.errors import PolicyError

PATIENCE = 100_000
"""Decisions at one instant after which a policy is said to make no progress."""
CHANGES = (Done, Fault)
"""Events after which a miss that was declined may be answered."""
DECLINES = 4
"""Offers in a row that a policy may decline before the rest must wait for the next change."""


class WaitingModels(Protocol):
    """Knows which models wait with no instance ready or on its way."""

    def hungry_models(self) -> list[str]:
        """All such models, the longest wait first."""

    def is_hungry(self, model: str) -> bool: ...


class PolicyChannel:
    """One cluster's talk with one policy."""

    def __init__(
        self,
        hungry: WaitingModels,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], None],
        may_begin: Callable[[Iterable[str] | None], bool],
    ) -> None:
        """`clock` stands still within one instant; `soon` calls back when the caller is done.

        `may_begin` says whether one of these GPUs (None: of all) may begin a load.
        """
        self._hungry = hungry
        self._clock = clock
        self._soon = soon
        self._may_begin = may_begin
        self._hear: Callable[[Event], None] = lambda event: None
        self._outbox: deque[Event] = deque()
        self._stirred = False
        self._actions = 0
        self._turn = 0
        self._instant, self._asked = -1.0, 0
        self.talking = False
        """The policy is being told something."""
        self.unasked = False
        """The last round of offers ended before all were asked."""
        self.answers_misses = True
        """False for policies that want no `Miss` at all."""
        self.asked_s = 0.0
        """`time.perf_counter()` when the policy was last asked."""
        self.decide_s = 0.0
        """Seconds that the policy took in all."""

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` of every event from now on."""
        self._hear = hear

    def acted(self) -> None:
        """The policy has done something: the offer was not in vain."""
        self._actions += 1

    def tell(self, event: Event) -> None:
        """Let the policy hear `event`, then what follows from it at this instant."""
        self._outbox.append(event)
        if not self.talking:
            self._talk(self._empty_outbox)

    def answer(self, done: Done) -> None:
        """Report an action that ended at once, but not before `start` has returned."""
        if self.talking:
            self._outbox.append(done)
        else:
            self._soon(partial(self.tell, done))

    def offer(self) -> None:
        """Offer misses again."""
        self._talk(self._offer)

    def offer_to_all(self) -> None:
        """Offer misses again to every model, however many decline."""
        self._talk(partial(self._offer, declines=len(self._hungry.hungry_models()) + 1))

    def fell_idle(self, copy: Instance) -> None:
        """Offer misses again, until `copy` leaves, if a load could begin where it is now idle."""
        if self._may_begin(copy.gpus):
            self._talk(partial(self._offer, copy))

    def _talk(self, say: Callable[[], None]) -> None:
        """Say something to the policy, then offer misses again if that changed anything."""
        self.talking = True
        try:
            say()
            while self._stirred:
                self._offer()
        finally:
            self.talking = False

    def _empty_outbox(self) -> None:
        while self._outbox:
            self._say(self._outbox.popleft())

    def _say(self, event: Event) -> None:
        if isinstance(event, Miss) and not self._hungry.is_hungry(event.model):
            return
        if (now := self._clock()) != self._instant:
            self._instant, self._asked = now, 0
        self._asked += 1
        if self._asked > PATIENCE:
            raise PolicyError(
                f"policy makes no progress: {PATIENCE:,} decisions without time advancing; "
                f"the last event was {event!r}"
            )
        self.asked_s = time.perf_counter()
        self._hear(event)
        self.decide_s += time.perf_counter() - self.asked_s
        if isinstance(event, CHANGES):
            refused = isinstance(event, Done) and event.error and not event.instance
            self._stirred = self._stirred or not refused

    def _offer(self, idle: Instance | None = None, declines: int = DECLINES) -> None:
        """Offer `Miss` again to models that wait in vain, since something changed (or is `idle`).

        The longest wait goes first. After some have been declined in a row the rest is likely to
        be declined too; a turning start makes sure that each is asked before long.
        """
        self._stirred = self.unasked = False
        if not self.answers_misses or not (hungry := self._hungry.hungry_models()):
            return
        first, *rest = hungry
        self._turn = turn = (self._turn + 1) % max(1, len(rest))
        in_vain = 0
        for model in (first, *rest[turn:], *rest[:turn]):
            if not self._may_begin(None):
                self.unasked = True
                return
            begun = self._actions
            self._outbox.append(Miss(model))
            self._empty_outbox()
            in_vain = in_vain + 1 if self._actions == begun else 0
            if in_vain >= declines or (idle is not None and idle.phase is not Phase.READY):
                self.unasked = True
                return
