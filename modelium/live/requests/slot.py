"""A request's place at a ready engine: what `Seats.seat` gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.live.requests.interface import Outcome, Request
from modelium.managers.engine import Engine

if TYPE_CHECKING:
    from modelium.live.requests.dispatcher import Dispatcher


class LiveSeat:
    """A request's place at a ready engine."""

    __slots__ = (
        "_hear_cut", "_open", "_reception", "_share_s", "begun_s", "cold", "copy", "cut", "engine",
        "first_s", "gpu_seconds", "moved_s", "request",
    )  # fmt: skip

    def __init__(
        self, dispatcher: Dispatcher, request: Request, copy: Copy, engine: Engine, cold: str
    ) -> None:
        self.request, self.copy, self.engine, self.cold = request, copy, engine, cold
        self.begun_s = self.moved_s = dispatcher.clock()
        self.first_s: float | None = None
        self.gpu_seconds = 0.0
        self.cut = ""
        self._hear_cut: Callable[[], object] | None = None
        self._reception = dispatcher
        self._share_s = dispatcher.meters[copy.id].begin()
        dispatcher.busy.begin(copy.gpus)
        self._open = True

    def first_token(self) -> None:
        """The answer has begun."""
        if self.first_s is None:
            self.first_s = self.moved_s = self._reception.clock()

    def progress(self) -> None:
        """More of the answer has come."""
        self.moved_s = self._reception.clock()

    def finish(self, outcome: Outcome, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """It is over. Token counts as the engine told them; 0 if it did not."""
        self.request.prompt_tokens = prompt_tokens or self.request.prompt_tokens
        self.request.output_tokens = output_tokens
        self._leave(outcome, "")

    def lost(self, why: str, *, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """The engine broke; the cluster looks after it.

        A request whose answer had begun is over: token counts are what it had.
        """
        if self._open:
            self._reception.control.suspect(self.copy, why)
            if self.first_s is not None:
                self.request.prompt_tokens = prompt_tokens or self.request.prompt_tokens
                self.request.output_tokens = output_tokens
        self._leave("lost", why)

    def when_cut(self, hear: Callable[[], object]) -> None:
        """Call this when the engine is ended under the request, or now, if that has happened."""
        self._hear_cut = hear
        if self.cut:
            hear()

    def end_call(self, why: str) -> None:
        """The engine was ended: whoever waits for its answer waits in vain."""
        self.cut = why
        if self._hear_cut is not None:
            self._hear_cut()

    def _leave(self, outcome: str, why: str) -> None:
        if not self._open:
            return
        self._open = False
        self._reception.leave(self, self._share_s, outcome, why)
