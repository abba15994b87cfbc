"""Rows of JSON: a list of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.columns import Number, wrong_cell
from modelium.traces.source import opened_text

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """The objects of a file with one on each line; empty lines are skipped."""
    rows: list[Row] = []
    with opened_text(path) as text:
        for line in text:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TraceError(f"{path}, row {len(rows) + 1:,}: not JSON ({error})") from error
            rows.append(_object(path, len(rows) + 1, row))
    return rows


def read_whole(path: Path) -> Any:
    """The one value in a JSON file. Raises TraceError where it is not JSON."""
    with opened_text(path) as text:
        try:
            return json.load(text)
        except ValueError as error:
            raise TraceError(f"{path} is not JSON ({error})") from error


def objects(path: Path, values: Iterable[Any]) -> list[Row]:
    """These values, all of which must be JSON objects."""
    return [_object(path, row, value) for row, value in enumerate(values, 1)]


def _object(path: Path, row: int, value: Any) -> Row:
    if isinstance(value, dict):
        return value
    raise TraceError(f"{path}, row {row:,}: is {value!r:.40}, expected a JSON object")


def column(path: Path, rows: Sequence[Row], name: str, kind: Number) -> NDArray[np.float64]:
    """One member of each object, as numbers."""
    return checked(path, name, [row.get(name) for row in rows], kind)


def checked(path: Path, name: str, cells: Sequence[Any], kind: Number) -> NDArray[np.float64]:
    """Values from JSON as numbers; the first wrong one is an error with its row."""
    for row, cell in enumerate(cells, 1):
        if not kind.accepts(cell):
            raise wrong_cell(path, row, name, cell, kind)
    return np.array(cells, np.float64)
