"""Reading CSV columns: a million rows in well under a second, errors with the row's number.

The fast pass leaves parsing to Arrow and only learns *that* something is wrong; then a slow pass
reads cell by cell until it finds the first wrong one and can say what it is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.results import arrow
from modelium.traces.columns import (
    Clock,
    Column,
    Columns,
    Number,
    Read,
    missing_column,
    parse_clock,
    wrong_cell,
)
from modelium.traces.source import head, opened, opened_text
from modelium.traces.trace import Labels

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 20


def header(path: Path) -> list[str]:
    """The column names in the first line of a CSV file."""
    return header_of(head(path))


def header_of(start: bytes) -> list[str]:
    """The column names in the first line of these bytes; empty if that is not a line of CSV."""
    line = start.decode("utf-8-sig", errors="replace").lstrip("\r\n").partition("\n")[0]
    try:
        return next(csv.reader([line.rstrip("\r")]), [])
    except csv.Error:
        return []


def read_csv(path: Path, required: Columns, optional: Columns | None = None) -> Read:
    """Read columns of a CSV file: seconds as float64, whole numbers as int32, names as Labels.

    Optional columns that the file lacks are left out of the result. Raises TraceError naming file
    and row.
    """
    found = header(path)
    for name in required:
        if name not in found:
            raise missing_column(path, name, found)
    columns = {**required, **{n: c for n, c in (optional or {}).items() if n in found}}
    for name in columns:
        if found.count(name) > 1:
            raise TraceError(f"{path} has more than one column {name!r}")
    clocks = any(isinstance(column, Clock) for column in columns.values())
    for zone in ("", "UTC", None) if clocks else ("",):
        read = _fast(path, columns, zone)
        if read is not None and len(read[next(iter(columns))]):
            return read
    if _count(path, found, columns):
        raise TraceError(f"{path} is not a table that can be read as CSV")
    raise TraceError(f"{path} holds no requests, only a header")


def _fast(path: Path, columns: Columns, zone: str | None) -> Read | None:
    """All columns at once, or None if anything in them is wrong.

    Clocks are read as times without a zone ("") or with one, or as text (None): that takes any
    mixture but is slow.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    parts: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        with opened(path) as file:
            blocks = arrow_csv.open_csv(
                pa.PythonFile(file, mode="r"),
                read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=list(columns),
                    column_types={name: _arrow_type(c, zone) for name, c in columns.items()},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
                memory_pool=pa.system_memory_pool(),  # gives back what it frees
            )
            for block in blocks:
                for name, column in columns.items():
                    parts[name].append(_part(block.column(name), column))
        return {name: _whole_column(parts[name], c) for name, c in columns.items()}
    except (pa.ArrowInvalid, pa.ArrowKeyError, WrongError):
        return None


class WrongError(Exception):
    """Something in a column is wrong; the slow pass will say what."""


def _arrow_type(column: Column, zone: str | None) -> pa.DataType:
    import pyarrow as pa

    if isinstance(column, Number):
        return pa.float64()
    if isinstance(column, Clock) and zone is not None:
        return pa.timestamp("ns", zone or None)
    return pa.dictionary(pa.int32(), pa.string())


def _part(array: pa.Array, column: Column) -> Any:
    return number_column(array, column) if isinstance(column, Number) else array


def number_column(array: Any, column: Number) -> NDArray[Any]:
    """An Arrow column of numbers as float64, or int32 if whole; WrongError if any is wrong."""
    import pyarrow as pa

    if array.type != pa.float64():
        array = array.cast(pa.float64(), safe=False)
    values = arrow.array(array)
    if array.null_count:
        if column.blank is None:
            raise WrongError
        values = np.where(arrow.missing(array), column.blank, values)
    if column.wrong(values):
        raise WrongError
    return values.astype(np.int32) if column.whole else values


def _whole_column(parts: list[Any], column: Column) -> NDArray[Any] | Labels:
    if isinstance(column, Number):
        return np.concatenate(parts) if parts else np.empty(0)
    if isinstance(column, Clock):
        return _clock_column(parts)
    labels = name_column(parts)
    if column.required and np.any(labels.codes < 0):
        raise WrongError
    return labels


def name_column(parts: Iterable[Any]) -> Labels:
    """Arrow arrays of text, one after the other, as Labels."""
    import pyarrow as pa

    column = pa.chunked_array(parts, pa.dictionary(pa.int32(), pa.string()))
    chunks = column.unify_dictionaries().chunks
    found: list[str] = chunks[0].dictionary.to_pylist() if chunks else []
    order = sorted(range(len(found)), key=found.__getitem__)
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    rank[-1] = -1
    codes = [rank[arrow.codes(chunk)] for chunk in chunks]
    labels = Labels(np.concatenate([rank[:0], *codes]), tuple(found[k] for k in order))
    if "" in labels.names:  # an empty name in quotes means none as well
        return Labels.of(value or None for value in labels.values())
    return labels


def _clock_column(parts: list[Any]) -> NDArray[np.float64]:
    """Seconds since the earliest time."""
    import pyarrow as pa

    if not parts:
        return np.empty(0)
    if any(part.null_count for part in parts):
        raise WrongError
    if pa.types.is_timestamp(parts[0].type):
        ticks = np.concatenate([arrow.array(part.view(pa.int64())) for part in parts])
        since: NDArray[np.float64] = (ticks - ticks.min()) / 1e9
        return since
    labels = name_column(parts)
    seconds = [parse_clock(name) for name in labels.names]
    if None in seconds:
        raise WrongError
    times = np.array(seconds, np.float64)[labels.codes]
    from_first: NDArray[np.float64] = times - times.min()
    return from_first


def _count(path: Path, names: list[str], columns: Columns) -> int:
    """Read cell by cell; count the rows, or raise the error of the first wrong cell."""
    number = 0
    checked = [(names.index(name), name, column) for name, column in columns.items()]
    with opened_text(path) as text:
        try:
            rows = (row for row in csv.reader(text) if row)
            next(rows, None)  # the header
            for number, cells in enumerate(rows, 1):
                _check_row(path, number, cells, len(names), checked)
        except csv.Error as error:
            raise TraceError(f"{path} is not a table that can be read as CSV: {error}") from error
    return number


def _check_row(
    path: Path, number: int, cells: list[str], width: int, checked: list[tuple[int, str, Column]]
) -> None:
    if len(cells) != width:
        raise TraceError(f"{path}, row {number:,}: has {len(cells)} columns, expected {width}")
    for at, name, column in checked:
        if not column.accepts(cells[at]):
            raise wrong_cell(path, number, name, cells[at], column)


def check_cells(path: Path, name: str, column: Column, cells: Iterable[object]) -> None:
    """Raise the error of the first wrong cell of one column, if there is one."""
    for row, cell in enumerate(cells, 1):
        if not column.accepts(cell):
            raise wrong_cell(path, row, name, cell, column)
