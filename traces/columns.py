"""What a column may hold, checked on whole columns (fast) and cell by cell (to say what is wrong).

Rows are counted from 1: row 1 is the first request, after the header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError, did_you_mean
from modelium.traces.trace import Labels

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Number:
    """A column of numbers between `low` and `high`; `blank` is the value of an empty cell."""

    expected: str
    whole: bool = False
    low: float = 0.0
    high: float = math.inf
    blank: float | None = None

    def wrong(self, values: NDArray[np.float64]) -> bool:
        """Is any value out of range, NaN, infinite, or a fraction where none may be?"""
        if not np.all((values >= self.low) & (values <= self.high) & np.isfinite(values)):
            return True
        return self.whole and bool(np.any(values != np.floor(values)))

    def accepts(self, cell: object) -> bool:
        """The same question for one cell as it stands in the file."""
        if cell is None or cell == "":
            return self.blank is not None
        if "_" in str(cell):  # Python takes 1_000 for a number, others do not
            return False
        try:
            value = float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return not self.wrong(np.array([value]))


@dataclass(frozen=True)
class Name:
    """A column of names; where one is not `required`, an empty cell means none."""

    expected: str = "a name"
    required: bool = True

    def accepts(self, cell: object) -> bool:
        """Is this one cell right?"""
        if cell is None or cell == "":
            return not self.required
        return "\ufffd" not in str(cell)  # what stands for bytes that are not UTF-8


@dataclass(frozen=True)
class Clock:
    """A column of wall-clock times in ISO 8601; read as seconds since the earliest of them."""

    expected: str = "a time such as 2023-11-16 18:17:03.979"

    def accepts(self, cell: object) -> bool:
        """Is this one cell right?"""
        return isinstance(cell, str) and parse_clock(cell) is not None


Column = Number | Name | Clock
Columns = Mapping[str, Column]
Read = dict[str, NDArray[Any] | Labels]

SECONDS = Number("a number of seconds >= 0")
WHOLE = Number("a whole number >= 0", whole=True, high=INT32_MAX)


def parse_clock(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, UTC where it names no zone; None if it is none."""
    stamp, dot, rest = text.strip().partition(".")
    fraction = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:  # datetime reads six digits of a fraction at most; some logs have seven
        moment = datetime.fromisoformat(stamp + rest[len(fraction) :])
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{fraction}") if dot and fraction else 0.0)


def wrong_cell(path: Path | str, row: int, name: str, cell: object, column: Column) -> TraceError:
    """The one-line error for a cell: file, row, column, value and what would be right."""
    value = "missing" if cell is None or cell == "" else shortened(repr(cell))
    return TraceError(f"{path}, row {row:,}: {name} is {value}, expected {column.expected}")


def missing_column(path: Path | str, name: str, found: list[str], hint: str = "") -> TraceError:
    """The one-line error for a column that is not there."""
    near = did_you_mean(name, found).replace("Did you mean", "Is it")
    has = shortened(", ".join(found), 200)
    return TraceError(f"{path} has no column {name!r}.{near} Its columns are: {has}.{hint}")


def shortened(text: str, limit: int = 60) -> str:
    """The text, cut where it is too long for a line."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
