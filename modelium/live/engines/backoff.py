"""Loads that failed: when to try again, where not to, and when to give a model up.

After a failure a model rests: `first_s`, then twice as long each time up to `most_s`. The next try
goes to another GPU where one has room. After `tries` failures in a row the model is *failed*: its
requests are refused with the cause, until `forgive_s` later or until an operator asks for a load.
A failure that another try cannot change (a flag that the engine refuses, a missing file) is not
tried again. A load that ran out of memory once is tried again at once: by then the model's need is
known better, and the policy makes more room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Patience:
    """How failures are taken."""

    tries: int = 3
    first_s: float = 2.0
    most_s: float = 60.0
    forgive_s: float = 900.0
    """ModelMesh forgives a failed load after 15 minutes too."""


@dataclass(slots=True)
class Trouble:
    """The failures of one model, since its last success."""

    why: str
    log: str = ""
    failures: int = 0
    until_s: float = 0.0
    failed: bool = False
    out_of_memory: bool = False
    gpus: set[str] = field(default_factory=set)


class Failures:
    """The troubles of all models."""

    def __init__(self, clock: Callable[[], float], patience: Patience | None = None) -> None:
        self._clock = clock
        self.patience = patience or Patience()
        self._troubles: dict[str, Trouble] = {}

    def note(
        self,
        model: str,
        gpus: tuple[str, ...],
        why: str,
        *,
        log: str = "",
        oom: bool = False,
        final: bool = False,
    ) -> Trouble:
        """A load has failed; the answer says until when the model rests.

        `final`: another try would end in the same way.
        """
        trouble = self._troubles.setdefault(model, Trouble(why))
        trouble.why, trouble.log = why, log or trouble.log
        trouble.gpus.update(gpus)
        if oom and not trouble.out_of_memory:
            trouble.out_of_memory = True  # once, and at once
            return trouble
        trouble.failures += 1
        rest_s = min(self.patience.first_s * 2 ** (trouble.failures - 1), self.patience.most_s)
        if final or trouble.failures >= self.patience.tries:
            trouble.failed, rest_s = True, self.patience.forgive_s
        trouble.until_s = self._clock() + rest_s
        return trouble

    def forget(self, model: str) -> None:
        """It was loaded, was changed, or an operator wants it tried again."""
        self._troubles.pop(model, None)

    def rests(self, model: str) -> bool:
        """It must not be loaded yet."""
        return self.left_s(model) > 0

    def of(self, model: str) -> Trouble | None:
        """Its trouble, if it has any."""
        trouble = self._troubles.get(model)
        if trouble is not None and trouble.failed and self._clock() >= trouble.until_s:
            self.forget(model)
            return None
        return trouble

    def left_s(self, model: str) -> float:
        """How much longer it rests."""
        trouble = self._troubles.get(model)
        return max(0.0, trouble.until_s - self._clock()) if trouble else 0.0
