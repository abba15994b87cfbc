"""The decision log's lines, and who hears what happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from modelium.core import Action, Decision, Event
from modelium.live.place import LiveSeat
from modelium.live.seats import RefusedError, Request
from modelium.state import State

log = logging.getLogger(__name__)
News = Callable[[str, Mapping[str, Any]], None]
"""Hears what happened, and about whom, as plain values."""


@dataclass
class Watchers:
    """Who hears what happens: metrics, the event stream, the terminal."""

    news: list[News] = field(default_factory=list)
    done: list[Callable[[Event], None]] = field(default_factory=list)
    over: list[Callable[[LiveSeat, str, str], None]] = field(default_factory=list)
    refused: list[Callable[[Request, RefusedError], None]] = field(default_factory=list)


def tell(watchers: Iterable[Callable[..., None]], *about: Any) -> None:
    """Let all hear it; one that breaks hurts neither the others nor whoever tells."""
    for hear in tuple(watchers):
        try:
            hear(*about)
        except Exception:
            log.exception("%r broke", hear)


def line_of(state: State, action: Action, why: str) -> Decision:
    """An action as a line of the log; with `why` it was refused."""
    instance = getattr(action, "instance", "")
    known = state.instances.get(instance)
    model = getattr(action, "model", known.model if known else "")
    gpus = getattr(action, "gpus", known.gpus if known else ())
    kind, now_s = type(action).__name__.lower(), state.now_s
    line = Decision(now_s, kind, model, instance, gpus, getattr(action, "reason", ""))
    if why:
        line.end_s, line.error, line.instance = now_s, why, ""
    return line


def as_news(line: Decision) -> dict[str, Any]:
    """A decision as plain values."""
    about = asdict(line)
    about["end_s"] = None if line.end_s != line.end_s else line.end_s
    return about
