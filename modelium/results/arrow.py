"""Columns from numpy to Arrow and back.

Arrow's own conversions (`pa.array`, `to_numpy`) import pandas, its functions on columns import
`pyarrow.compute`: together a fifth of a second, more than all else that a short command does with
tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


def numbers(values: NDArray[Any]) -> pa.Array:
    """An array of numbers or truth values; numbers are not copied."""
    import pyarrow as pa

    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, _bits(values)])
    kind = pa.from_numpy_dtype(values.dtype)
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, data])


def texts(values: Iterable[str]) -> pa.Array:
    """An array of texts."""
    import pyarrow as pa

    coded = [value.encode() for value in values]
    ends = np.zeros(len(coded) + 1, np.int32)
    np.cumsum([len(text) for text in coded], out=ends[1:])
    data = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(coded))]
    return pa.Array.from_buffers(pa.string(), len(coded), data)


def names(codes: NDArray[np.integer[Any]], known: Sequence[str]) -> pa.DictionaryArray:
    """An array of names, as codes (below 0: none) that point into those that are known."""
    import pyarrow as pa

    there = codes >= 0
    valid = None if there.all() else _bits(there)
    known_codes = codes if valid is None else np.where(there, codes, 0)
    data = pa.py_buffer(np.ascontiguousarray(known_codes, np.int32))
    indices = pa.Array.from_buffers(pa.int32(), len(codes), [valid, data])
    return pa.DictionaryArray.from_arrays(indices, texts(known))


def array(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers or truth values; whatever stands where one is missing."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        kind = column.type.to_pandas_dtype()
        parts = [array(chunk) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])
    data, begin, n = column.buffers()[1], column.offset, len(column)
    if pa.types.is_boolean(column.type):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=begin + n, bitorder="little")
        return bits[begin:].astype(np.bool_)
    return np.frombuffer(data, column.type.to_pandas_dtype(), begin + n)[begin:]


def missing(column: pa.Array) -> NDArray[np.bool_]:
    """Where nothing stands."""
    valid, begin, n = column.buffers()[0], column.offset, len(column)
    if valid is None or not column.null_count:
        return np.zeros(n, np.bool_)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), count=begin + n, bitorder="little")
    absent: NDArray[np.bool_] = bits[begin:] == 0
    return absent


def codes(column: pa.DictionaryArray) -> NDArray[np.int32]:
    """The codes of an array of names; -1: none."""
    known: NDArray[np.int32] = array(column.indices)
    if not column.indices.null_count:
        return known
    return np.where(missing(column.indices), np.int32(-1), known)


def _bits(values: NDArray[np.bool_]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(values, bitorder="little"))
