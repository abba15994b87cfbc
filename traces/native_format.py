"""Modelium's own trace format: a table in CSV (plain or .gz) or Parquet. See docs/traces.md."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.results import arrow
from modelium.traces.columns import SECONDS, WHOLE, Columns, Name, Number, Read, missing_column
from modelium.traces.formats.asked import Asked, Start
from modelium.traces.source import PARQUET
from modelium.traces.table import WrongError, check_cells, header, name_column, number_column
from modelium.traces.table import read_csv as read_csv_table
from modelium.traces.trace import LABEL_COLUMNS, Labels, Trace

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS: Columns = {"arrival_s": SECONDS, "prompt_tokens": WHOLE, "output_tokens": WHOLE}
MODEL: Columns = {"model": Name("the name of a model")}
OPTIONAL: Columns = {
    **{name: Name(required=False) for name in LABEL_COLUMNS},
    "prefix_tokens": WHOLE,
}
COLUMNS = ("arrival_s", "model", "prompt_tokens", "output_tokens", *OPTIONAL)
"""All columns, in the order in which they are written; each is a field of `Trace`."""


def read_csv(path: Path, model: str | None = None) -> Trace:
    """Read a CSV trace; `model` stands in where the file has no such column."""
    required = _required(path, header(path), model)
    return _trace(path, read_csv_table(path, required, OPTIONAL), model)


def read_parquet(path: Path, model: str | None = None) -> Trace:
    """Read a Parquet trace; `model` stands in where the file has no such column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        required = _required(path, file.schema_arrow.names, model)
        found = set(file.schema_arrow.names)
        columns = {**required, **{n: c for n, c in OPTIONAL.items() if n in found}}
        if not file.metadata.num_rows:
            raise TraceError(f"{path} holds no requests")
        return _trace(path, {n: _parquet_column(path, file, n, columns) for n in columns}, model)
    except (pa.ArrowInvalid, OSError) as error:
        detail = str(error).splitlines()[0]
        raise TraceError(f"{path} is damaged Parquet ({detail}). Copy it again.") from error


def certainly(start: Start) -> bool:
    """A first line that names all our columns of numbers, as no other format's does."""
    return start.has(*NUMBERS)


def recognises(start: Start) -> bool:
    """Parquet, or a first line that names at least one of our columns."""
    return start.bytes.startswith(PARQUET) or bool(set(COLUMNS) & set(start.columns))


def read(path: Path, asked: Asked) -> Trace:
    """Read CSV or Parquet, whichever it is."""
    read_either = read_parquet if Start(path).bytes.startswith(PARQUET) else read_csv
    return asked.applied(read_either(path, asked.model))


def _required(path: Path, found: list[str], model: str | None) -> Columns:
    for name in NUMBERS:
        if name not in found:
            raise missing_column(path, name, found)
    if "model" in found:
        return {**NUMBERS, **MODEL}
    if model is None:
        hint = " If all requests are for one model, name it (--model NAME)."
        raise missing_column(path, "model", found, hint)
    return NUMBERS


def _parquet_column(path: Path, file: Any, name: str, columns: Columns) -> Any:
    import pyarrow as pa

    column = columns[name]
    parts = file.iter_batches(1 << 17, columns=[name], use_threads=False)
    array = pa.chunked_array((part.column(0) for part in parts), file.schema_arrow.field(name).type)
    try:
        if isinstance(column, Name):
            text = pa.dictionary(pa.int32(), pa.string())
            labels = name_column(array.cast(pa.string()).cast(text).chunks)
            if column.required and np.any(labels.codes < 0):
                raise WrongError
            return labels
        assert isinstance(column, Number)  # the own format has no clocks
        return number_column(array, column)
    except (WrongError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        check_cells(path, name, column, array.to_pylist())
        raise TraceError(f"{path}: {name} is {array.type}, expected {column.expected}") from error


def _trace(path: Path, read: Read, model: str | None) -> Trace:
    numbers = {name: values for name, values in read.items() if isinstance(values, np.ndarray)}
    labels = {name: values for name, values in read.items() if isinstance(values, Labels)}
    arrival_s = numbers["arrival_s"]
    if model is not None and "model" not in labels:
        labels["model"] = Labels.constant(model, len(arrival_s))
    trace = Trace(
        arrival_s=arrival_s,
        model=labels.pop("model"),
        prompt_tokens=numbers["prompt_tokens"],
        output_tokens=numbers["output_tokens"],
        prefix_tokens=numbers.get("prefix_tokens"),
        source=str(path),
    ).labelled(labels)
    ordered = trace.in_order()
    if ordered is trace:
        return trace
    late = int(np.argmax(arrival_s[1:] < arrival_s[:-1])) + 2
    return ordered.noting(f"{path} was not in order of arrival (first at row {late:,}): sorted")


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace as .csv, .csv.gz or .parquet, by the ending of `path`.

    The same trace gives the same bytes. The file appears only when it is whole. Raises
    TraceError for another ending or where it cannot be written.
    """
    path = Path(path)
    ending = path.name.lower()
    write = _write_parquet if ending.endswith(".parquet") else _write_csv
    if not ending.endswith((".csv", ".csv.gz", ".parquet")):
        raise TraceError(f"{path}: a trace is written as .csv, .csv.gz or .parquet")
    with _whole(path) as draft:
        write(trace, draft, ending.endswith(".gz"))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise TraceError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _filled(trace: Trace) -> dict[str, NDArray[Any] | Labels]:
    columns = {name: getattr(trace, name) for name in COLUMNS}
    return {name: column for name, column in columns.items() if column is not None}


def _write_csv(trace: Trace, path: Path, packed: bool) -> None:
    columns = _filled(trace)
    with path.open("wb") as raw:
        # No name and no time of day in the gzip header: the same trace, the same bytes.
        file = gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else raw
        with io.TextIOWrapper(file, "utf-8", newline="") as text:
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(columns)
            rows.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))


def _cells(column: NDArray[Any] | Labels) -> list[Any]:
    return column.values() if isinstance(column, Labels) else column.tolist()


def _write_parquet(trace: Trace, path: Path, packed: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _arrow(column) for name, column in _filled(trace).items()})
    pq.write_table(table, path, compression="zstd", compression_level=9)


def _arrow(column: NDArray[Any] | Labels) -> pa.Array:
    if not isinstance(column, Labels):
        return arrow.numbers(column)
    return arrow.names(column.codes, column.names)
