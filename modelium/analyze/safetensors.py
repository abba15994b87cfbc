"""Sizes from safetensors headers: eight bytes of length, then JSON; the weights stay unread."""

from __future__ import annotations

import struct
from collections import Counter
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelium.analyze.reading import (
    MOST_JSON_BYTES,
    Weights,
    any_beside,
    check_beside,
    check_names,
    check_weights,
    load_json,
    read_json,
)
from modelium.errors import ProfileError

_MOST_DIMENSIONS = 32
INDEX = "model.safetensors.index.json"
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_safetensors(folder: Path) -> Weights | None:
    """The weights of a folder with safetensors files; None if it has none.

    An index names the files; without one it is `model.safetensors`, or else all that are there.
    Raises ProfileError for an index or a header that is wrong, or if some of its files are missing.
    """
    index = folder / INDEX
    if index.exists():
        return _indexed(index) if any_beside(_placed(index).values(), index) else None
    single = folder / "model.safetensors"
    paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    return _summed([read_header(path) for path in paths]) if paths else None


def read_index(folder: Path) -> Weights | None:
    """What an index alone says of weights that are elsewhere: how many files, and their size.

    None if there is no index, or one that states no size. Raises ProfileError for a wrong one.
    """
    index = folder / INDEX
    if not index.exists():
        return None
    files = len(check_names(_placed(index).values(), index))
    size = _total_bytes(index)
    if not size:
        return None
    note = f"weights: none of the {files} files is here; their size is what the index states"
    return Weights("safetensors", 0, size, notes=(note,))


def read_header(path: Path) -> dict[str, Any]:
    """The tensors of one file, by name; raises ProfileError unless all of them are in the file."""
    size = check_weights(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else -1
        if not 2 <= length <= size - 8:
            raise ProfileError(
                f"{path} is not a whole safetensors file: its header would have {length} bytes,"
                f" the file has {size}"
            )
        if length > MOST_JSON_BYTES:
            raise ProfileError(f"{path} has a header of {length} bytes, which no model needs")
        header = load_json(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    data_bytes = size - 8 - length
    for name, tensor in header.items():
        if not _is_tensor(tensor, data_bytes):
            raise ProfileError(
                f"{path} describes tensor {name[:80]!r} as {repr(tensor)[:120]}, which cannot be"
                f" true of a file of {size} bytes; is the download complete?"
            )
    held = sum(end - begin for begin, end in (t["data_offsets"] for t in header.values()))
    if held != data_bytes:
        raise ProfileError(f"{path} holds {data_bytes} bytes of tensors, its header lists {held}")
    return header


def _is_tensor(tensor: object, data_bytes: int) -> bool:
    """It has a type, a shape and a place in the file, and they agree."""
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if len(shape) > _MOST_DIMENSIONS:
                return False
            if not all(type(n) is int and 0 <= n <= 1 << 62 for n in (*shape, begin, end)):
                return False
            bits, count = 8 * (end - begin), prod(shape)
            if not 0 <= begin <= end <= data_bytes:
                return False
            return bits == -(-count * _BITS[dtype] // 8) * 8 if dtype in _BITS else count <= bits
    return False


def _placed(index: Path) -> dict[str, str]:
    """The file of each tensor; raises ProfileError."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ProfileError(f"{index} has no weight_map from tensors to files")
    for name, file in placed.items():
        if not isinstance(file, str):
            raise ProfileError(
                f"{index} places tensor {name[:80]!r} in {str(file)[:60]!r}, expected a file's name"
            )
    return placed


def _indexed(index: Path) -> Weights:
    placed = _placed(index)
    headers = [(path, read_header(path)) for path in check_beside(placed.values(), index)]
    held = {(name, path.name) for path, header in headers for name in header}
    for name, file in placed.items():
        if (name, file) not in held:
            raise ProfileError(f"{index} places tensor {name!r} in {file}, which does not hold it")
    _total_bytes(index)  # not used: some versions of Transformers got it wrong
    return _summed([header for _, header in headers])


def _total_bytes(index: Path) -> int:
    """The total that an index states, 0 if none; raises ProfileError for what is no size."""
    metadata = read_json(index).get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated is None:
        return 0
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 <= stated < 1 << 62:
        raise ProfileError(f"{index} states a total_size of {str(stated)[:60]!r}, expected bytes")
    return int(stated)


def _summed(headers: list[dict[str, Any]]) -> Weights:
    size_by_dtype: Counter[str] = Counter()
    parameters = 0
    for header in headers:
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            size_by_dtype[tensor["dtype"]] += end - begin
            parameters += prod(tensor["shape"])
    return Weights(
        "safetensors",
        len(headers),
        size_by_dtype.total(),
        parameters,
        MappingProxyType(dict(size_by_dtype.most_common())),
    )
