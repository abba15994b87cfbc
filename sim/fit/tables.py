"""Reading published measurements: a few columns of CSV or Parquet, and interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modelium.errors import ProfileError

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]


def read_csv(file: Path) -> Columns:
    """All columns of a CSV file. Raises ProfileError where it is absent or not a table."""
    from pyarrow import csv

    try:
        table = csv.read_csv(file)
    except FileNotFoundError:
        raise ProfileError(f"{file}: no such file") from None
    except pa.ArrowInvalid as error:
        raise ProfileError(f"{file} is not a CSV table: {error}") from None
    return {name: table[name].to_numpy() for name in table.column_names}


def read_parquet(file: Path, **wanted: str | int) -> Columns:
    """The rows of a Parquet file whose columns have the wanted values; absent columns match."""
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except FileNotFoundError:
        raise ProfileError(f"{file}: no such file") from None
    except pa.ArrowInvalid as error:
        raise ProfileError(f"{file} is not Parquet: {error}") from None
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    keep = np.ones(table.num_rows, dtype=bool)
    for name, value in wanted.items():
        if name in columns:
            keep &= columns[name] == value
    return {name: column[keep] for name, column in columns.items()}


def column(columns: Columns, name: str, file: Path) -> Floats:
    """One column as floats. Raises ProfileError where the file has none of that name."""
    if name not in columns:
        raise ProfileError(f"{file} has no column {name!r}, but {', '.join(columns)}")
    return columns[name].astype(float)
