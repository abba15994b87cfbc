"""The decision log's lines, and who hears what happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from modelium.core import Decision, Event
from modelium.live.requests.interface import RefusedError, Request
from modelium.live.requests.slot import LiveSeat

log = logging.getLogger(__name__)
News = Callable[[str, Mapping[str, Any]], None]
"""Hears what happened, and about whom, as plain values."""
Hear = TypeVar("Hear", bound=Callable[..., None])


class Listeners(list[Hear]):
    """Who hears of one kind of thing; one that breaks hurts neither the others nor the teller."""

    def __init__(self) -> None:
        super().__init__()
        self._broken: list[Hear] = []
        """Each is logged once: some things are told of a thousand times a second."""

    def remove(self, hear: Hear) -> None:
        """Tell `hear` nothing from now on."""
        super().remove(hear)
        if hear in self._broken:
            self._broken.remove(hear)

    def tell(self, *about: Any) -> None:
        """Let all hear it."""
        for hear in tuple(self):
            try:
                hear(*about)
            except Exception:
                if hear not in self._broken:
                    self._broken.append(hear)
                    log.exception("%r broke; its next failures are not logged", hear)


@dataclass
class EventBus:
    """Who hears what happens: metrics, the event stream, the terminal."""

    news: Listeners[News] = field(default_factory=Listeners)
    events: Listeners[Callable[[Event], None]] = field(default_factory=Listeners)
    over: Listeners[Callable[[LiveSeat, str, str], None]] = field(default_factory=Listeners)
    refused: Listeners[Callable[[Request, RefusedError], None]] = field(default_factory=Listeners)
    cancelled: Listeners[Callable[[Request], None]] = field(default_factory=Listeners)
    """Before they had a seat; clients that leave later are told of in `over`."""


def as_news(line: Decision) -> dict[str, Any]:
    """A decision as plain values."""
    about = asdict(line)
    about["end_s"] = None if line.end_s != line.end_s else line.end_s
    return about
