"""A trace: columns, not objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_REQUESTS = 50_000_000
"""More than this is not made up or copied: it would not fit into memory."""

LABEL_COLUMNS = ("slo_class", "organization", "session", "prefix_id")
"""The optional columns of text; each is a field of `Trace`. All code goes by this list."""


@dataclass(frozen=True)
class Labels:
    """A column of names, stored as codes into a table of names; -1 means none."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Labels:
        """Encode `values`; the names are kept in alphabetical order, None becomes -1."""
        listed = list(values)
        names = sorted({value for value in listed if value is not None})
        code: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        code[None] = -1
        codes = np.fromiter((code[value] for value in listed), np.int32, len(listed))
        return cls(codes, tuple(names))

    @classmethod
    def constant(cls, name: str, n: int) -> Labels:
        """The same name `n` times."""
        return cls(np.zeros(n, np.int32), (name,))

    @classmethod
    def concat(cls, parts: Iterable[Labels]) -> Labels:
        """Put columns one after the other; equal names become one."""
        listed = list(parts)
        names = sorted({name for part in listed for name in part.names})
        code = {name: i for i, name in enumerate(names)}
        codes = [part.recoded([code[name] for name in part.names]) for part in listed]
        return cls(np.concatenate(codes) if codes else np.empty(0, np.int32), tuple(names))

    def __len__(self) -> int:
        return len(self.codes)

    def values(self) -> list[str | None]:
        """The names, row by row."""
        table: list[str | None] = [*self.names, None]  # code -1 is the last
        return [table[code] for code in self.codes.tolist()]

    def counts(self) -> NDArray[np.int64]:
        """Rows of each name, in the order of `names`."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

    def recoded(self, new_codes: Iterable[int]) -> NDArray[np.int32]:
        """The codes after name i has become `new_codes[i]`."""
        return np.array([*new_codes, -1], np.int32)[self.codes]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Labels:
        """Only these rows, and only the names that they use, in alphabetical order."""
        codes = self.codes[rows]
        used = np.bincount(codes[codes >= 0], minlength=len(self.names)).nonzero()[0].tolist()
        used.sort(key=lambda i: self.names[i])
        names = tuple(self.names[i] for i in used)
        if names == self.names:
            return Labels(codes, names)
        new = np.full(len(self.names) + 1, -1, np.int32)
        new[used] = np.arange(len(used))
        return Labels(new[codes], names)


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

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Trace:
        """Only these rows, in this order (which must leave the arrivals sorted)."""
        labels = {name: getattr(self, name) for name in LABEL_COLUMNS}
        return replace(
            self,
            arrival_s=self.arrival_s[rows],
            model=self.model.take(rows),
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            prefix_tokens=None if self.prefix_tokens is None else self.prefix_tokens[rows],
            **{name: column and column.take(rows) for name, column in labels.items()},
        )

    def labelled(self, labels: Mapping[str, Labels]) -> Trace:
        """The same trace with these columns of names (keys: `LABEL_COLUMNS`)."""
        columns: dict[str, Any] = dict(labels)
        return replace(self, **columns)

    def in_order(self) -> Trace:
        """The same requests sorted by arrival; those at the same time keep their order."""
        if np.all(self.arrival_s[1:] >= self.arrival_s[:-1]):
            return self
        return self.take(np.argsort(self.arrival_s, kind="stable"))

    def noting(self, *notes: str) -> Trace:
        """The same trace with more to tell the user."""
        return replace(self, notes=self.notes + tuple(note for note in notes if note))
