"""The course of a transition: its steps, from one event to the next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import simpy
from simpy.events import URGENT

Steps = Generator[simpy.Event, Any, None]
"""What happens, up to each event that it waits for."""


class Urgent(simpy.Event):
    """Calls back at this instant, before all that is due at it, as SimPy's interruptions do."""

    def __init__(self, env: simpy.Environment, call: Callable[[], None]) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        self.callbacks.append(lambda _: call())
        env.schedule(self, URGENT)


class LostError(Exception):
    """What was under way is lost; the text says why."""


class Course:
    """Runs steps from event to event, and can be cut off where it is.

    `simpy.Process` does so too, with two more events each: one to begin, and one to tell of its
    end, which nobody awaits here. Transitions are most of what SimPy does in a simulation.
    """

    __slots__ = ("_awaited", "_env", "_steps")

    def __init__(self, env: simpy.Environment, steps: Steps) -> None:
        self._env, self._steps = env, steps
        self._awaited: simpy.Event | None = None

    def begin(self) -> None:
        """Take the first step now."""
        self._go(self._steps.send, None)

    def cut_off(self, why: str) -> None:
        """Raise LostError in it before all else that is due now; nothing if it has ended."""
        Urgent(self._env, lambda: self._raise(why))

    def _happened(self, event: simpy.Event) -> None:
        self._go(self._steps.send, event.value)

    def _raise(self, why: str) -> None:
        if self._awaited is not None:
            self._awaited.callbacks.remove(self._happened)
            self._go(self._steps.throw, LostError(why))

    def _go(self, step: Callable[[Any], simpy.Event], with_: Any) -> None:
        self._awaited = None
        try:
            self._awaited = step(with_)
        except StopIteration:
            return
        self._awaited.callbacks.append(self._happened)
