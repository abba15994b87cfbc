"""The life of an instance, as both worlds book it: its phases, its memory, and who was told.

Once for the simulated and the live cluster. How long a step takes and what an engine does in it is
theirs; so is how requests reach an instance (`DataPlane`).
"""

from __future__ import annotations

from typing import Protocol

from modelium.control.memory_ledger import MemoryLedger
from modelium.control.state import Copy, State
from modelium.control.timeline import Timeline
from modelium.core import Action, Decision, Phase


class DataPlane(Protocol):
    """What carries requests to instances."""

    def open(self, instance: Copy, cold: str) -> None:
        """It takes requests, first those that waited for it; `cold` says what they waited for."""

    def close(self, instance: Copy) -> None:
        """It takes no more requests; those that it has go on."""

    def forget(self, instance: Copy) -> None:
        """It is gone."""


class Lifecycle:
    """Books what instances are and hold: in the state, the memory ledger and the timeline."""

    def __init__(self, state: State, data_plane: DataPlane) -> None:
        self.state = state
        self.ledger = MemoryLedger(state.all_gpus)
        self.held: dict[str, int] = {}
        """Bytes that each instance really holds on each of its GPUs."""
        self.timeline = Timeline(state, self.held)
        self._data_plane = data_plane

    def took(self, instance: Copy, more_bytes: int) -> None:
        """It holds so many bytes more on each of its GPUs; the ledger has granted them."""
        self.held[instance.id] = self.held.get(instance.id, 0) + more_bytes

    def make_ready(self, instance: Copy, cold: str) -> None:
        """It takes requests from now on, first those that waited for it."""
        self.state.change(instance, Phase.READY)
        self.timeline.mark(instance, "ready")
        self._data_plane.open(instance, cold)

    def close(self, instance: Copy, phase: Phase, **holdings: int) -> Copy:
        """It takes no more requests, and is in another phase."""
        if instance.phase is Phase.READY:
            self._data_plane.close(instance)
        self.state.change(instance, phase, **holdings)
        return instance

    def hold(self, instance: Copy, bytes_per_gpu: int) -> None:
        """It holds only `bytes_per_gpu` from now on."""
        self.ledger.give(instance.gpus, self.held[instance.id] - bytes_per_gpu)
        self.held[instance.id] = bytes_per_gpu

    def forget(self, instance: Copy) -> None:
        """It is gone: give back all that it held."""
        self.timeline.mark(instance, "")
        self.ledger.give(instance.gpus, self.held.pop(instance.id, 0))
        self.state.remove(instance)
        self._data_plane.forget(instance)


def decision(state: State, action: Action, why: str = "") -> Decision:
    """An action as a line of the decision log; with `why` it was refused."""
    instance = getattr(action, "instance", "")
    known = state.instances.get(instance)
    model = getattr(action, "model", known.model if known else "")
    gpus = getattr(action, "gpus", known.gpus if known else ())
    kind, now_s = type(action).__name__.lower(), state.now_s
    line = Decision(now_s, kind, model, instance, gpus, getattr(action, "reason", ""))
    if why:
        line.end_s, line.error, line.instance = now_s, why, ""
    return line
