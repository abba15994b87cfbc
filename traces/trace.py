"""A trace: columns, not objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Labels:
    """A column of names, stored as codes into a table of names; -1 means none."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """Requests sorted by arrival; all columns have the same length n.

    The first arrival need not be at 0; times are seconds from the start of the trace.
    """

    arrival_s: NDArray[np.float64]
    model: Labels
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    """For models that answer in one piece (`infer`): ignored; their work is `prompt_tokens`."""
    slo_class: Labels | None = None
    organization: Labels | None = None
    session: Labels | None = None
    prefix_id: Labels | None = None
    """Requests with the same prefix share the first tokens of their prompts (a conversation)."""
    prefix_tokens: NDArray[np.int32] | None = None
    """How many prompt tokens are shared with others of the same `prefix_id`; None: all of them."""
    source: str = ""
    """File or command that it came from."""
    notes: tuple[str, ...] = field(default=())
    """What reading it had to assume or change (said once to the user)."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """From time 0 to the last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0
