"""An engine's stream of server-sent events, cut into what may be passed on.

Only whole events are passed on, so that a stream which breaks off can end with a clear error. They
are read as little as possible: up to the first with content (the answer begins there, and until
then the request can still be sent to another engine), those without choices, which tell the
usage, and those that may tell of a failure.
"""

from __future__ import annotations

import re
from typing import Any

from modelium.gateway.engines import BrokenError, Given, failure_in, json_of, usage_of

MOST_EVENT_BYTES = 16 << 20
"""An event that grows beyond this has no end."""
MOST_HELD_BYTES = 64 << 10
"""So much without content is an answer too."""
_EVENT = re.compile(rb".*?\n\r?\n", re.DOTALL)
_NO_CHOICES = re.compile(rb'"choices":\s*\[\s*\]')
_LAST = b"[DONE]"
_ERROR, _ABORT = b'"error"', b'"abort"'
"""In JSON only a key or a whole value looks like this: text has its quotes escaped."""


class Pieces:
    """One stream. `feed` it what comes, then ask whether that was `complete`."""

    def __init__(self, *, hide_usage: bool) -> None:
        """`hide_usage`: the usage was asked for by us, not by the client."""
        self.begun = False
        """The answer has begun: some content has come."""
        self.failure: Given | None = None
        """What the engine says went wrong; nothing that comes after it is passed on."""
        self._hide_usage = hide_usage
        self._usage = (0, 0)
        self._count = 0
        self._held = self._rest = self._tail = b""

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and output; as long as the engine has not said, at least one for each event."""
        prompt, output = self._usage
        return prompt, output or self._count

    @property
    def complete(self) -> bool:
        """The stream has ended as OpenAI's streams do."""
        ended = not self._rest.strip() and _LAST in self._tail
        return self.begun and ended and self.failure is None

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now. Raises BrokenError for what is no stream of events."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(b"\n\n"):
            end = _end(data)
            data, self._rest = data[:end], data[end:]
            if len(self._rest) > MOST_EVENT_BYTES:
                raise BrokenError(f"an event of more than {MOST_EVENT_BYTES} bytes")
            if not data:
                return b""
        self._tail = data[-32:]
        if _ERROR in data or _ABORT in data:
            data = self._up_to_failure(data)
        if _NO_CHOICES.search(data):
            data = self._read_usage(data)
        if self.begun:
            self._count += data.count(b"data:")
            return data
        self._held += data
        if not any(map(_has_content, _EVENT.findall(data))) and len(self._held) < MOST_HELD_BYTES:
            return b""
        self.begun, self._count = True, 1
        whole, self._held = self._held, b""
        return whole

    def _up_to_failure(self, data: bytes) -> bytes:
        """The events before the first that tells of a failure."""
        kept = []
        for event in _EVENT.findall(data):
            if failure := failure_in(_data(event)):
                self.failure = failure
                break
            kept.append(event)
        return b"".join(kept)

    def _read_usage(self, data: bytes) -> bytes:
        """The events without the one that tells the usage, if that is to be hidden."""
        kept = []
        for event in _EVENT.findall(data):
            if _NO_CHOICES.search(event):
                said = _data(event)
                if isinstance(said, dict) and said.get("choices") == [] and said.get("usage"):
                    self._usage = usage_of(said)
                    if self._hide_usage:
                        continue
            kept.append(event)
        return b"".join(kept)


def _end(data: bytes) -> int:
    """Where the last whole event ends; 0 if there is none."""
    plain, carriage = data.rfind(b"\n\n"), data.rfind(b"\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, carriage + 3 if carriage >= 0 else 0)


def _data(event: bytes) -> Any:
    """What the data of an event says, if that is JSON; other fields may stand before it."""
    _, found, data = (b"\n" + event).partition(b"\ndata:")
    return json_of(data) if found else None


def _has_content(event: bytes) -> bool:
    """Part of the answer, or its end; not a comment or a message's role alone."""
    if event.startswith(b":") or not event.strip():
        return False
    said = _data(event)
    choices = said.get("choices") if isinstance(said, dict) else None
    if not isinstance(choices, list):
        return True
    return any(_is_content(choice) for choice in choices)


def _is_content(choice: Any) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason") or choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(v for k, v in delta.items() if k != "role")
