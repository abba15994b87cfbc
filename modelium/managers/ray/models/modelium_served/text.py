"""Tokens that become text as they come, up to a string that ends it."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a decoder gives for a letter of which bytes are missing yet."""


class Text:
    """The text of one answer. `decode` makes text of tokens."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._tokens: list[int] = []
        self._begin = self._read = 0
        """Tokens from `_begin` are decoded together; those before `_read` are in `_text`."""
        self._text = ""
        self._given = 0
        self.stopped = False
        """A string that ends it has come."""

    @property
    def tokens(self) -> int:
        """How many there were."""
        return len(self._tokens)

    def add(self, token: int) -> str:
        """The text that is sure now; a part of a letter, or of a stop string, waits for more."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._begin : self._read])
        after = self._decode(self._tokens[self._begin :])
        if len(after) > len(before) and not after.endswith(UNFINISHED):
            self._begin, self._read = self._read, len(self._tokens)
            self._append(after[len(before) :])
        return self._take(self._hold)

    def rest(self) -> str:
        """What waited, when no more will come."""
        if not self.stopped and self._read < len(self._tokens):
            before = self._decode(self._tokens[self._begin : self._read])
            after = self._decode(self._tokens[self._begin :])
            self._read = len(self._tokens)
            self._append(after[len(before) :])
        return self._take(0)

    def _append(self, new: str) -> None:
        if self.stopped:
            return
        start = max(0, len(self._text) - self._hold)
        self._text += new
        found = [at for stop in self._stops if (at := self._text.find(stop, start)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _take(self, hold: int) -> str:
        end = len(self._text) - (0 if self.stopped else hold)
        new = self._text[self._given : end]
        self._given = max(self._given, end)
        return new
