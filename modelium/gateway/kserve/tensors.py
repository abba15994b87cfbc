"""Tensors of KServe's gRPC messages as bodies of its HTTP calls, and back.

Engines are asked over HTTP whatever the client speaks. Tensors go as bytes both ways (KServe's
binary extension), so that nothing is written as text and read again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as pb

from modelium.gateway.errors import ApiError

TYPES: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP16": ("", "<f2"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", ""),
}
"""The field of typed contents, where there is one, and numpy's name for it."""
SIZE = "binary_data_size"


def as_body(message: Any) -> tuple[bytes, int]:
    """A ModelInferRequest as a body, and the length of its JSON. Raises ApiError (400)."""
    raw = list(message.raw_input_contents)
    if not raw:
        raw = [_typed(tensor) for tensor in message.inputs]
    elif len(raw) != len(message.inputs):
        why = f"raw_input_contents has {len(raw)} tensors, expected {len(message.inputs)}"
        raise ApiError(400, why, param="raw_input_contents")
    outputs = [
        {"name": one.name, "parameters": {**_plain(one.parameters), "binary_data": True}}
        for one in message.outputs
    ]
    body: dict[str, Any] = {"inputs": list(map(_input, message.inputs, raw))}
    body["parameters"] = _plain(message.parameters)
    if message.id:
        body["id"] = message.id
    if outputs:
        body["outputs"] = outputs
    else:
        body["parameters"]["binary_data_output"] = True
    head = orjson.dumps(body)
    return b"".join([head, *raw]), len(head)


def _input(tensor: Any, data: bytes) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {**_plain(tensor.parameters), SIZE: len(data)},
    }


def _typed(tensor: Any) -> bytes:
    """The bytes of a tensor whose values are in typed fields. Raises ApiError (400)."""
    field, kind = TYPES.get(tensor.datatype, ("", ""))
    if not field:
        why = f"{tensor.name} is of type {tensor.datatype!r:.20}: give it in raw_input_contents"
        raise ApiError(400, why, param="inputs")
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return _texts(values)
    try:
        return np.array(list(values), kind).tobytes()
    except OverflowError:
        why = f"{tensor.name} holds numbers that are no {tensor.datatype}: {reprlib.repr(values)}"
        raise ApiError(400, why, param="inputs") from None


def _texts(values: Iterable[bytes]) -> bytes:
    """Each with its length before it."""
    return b"".join(len(one).to_bytes(4, "little") + one for one in values)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values."""
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice"))
    }


def as_message(model: str, version: str, body: bytes, length: int | None) -> Any:
    """An engine's answer as a ModelInferResponse; `length` of its JSON, if tensors follow it.

    Raises ValueError for what is no such answer.
    """
    told = orjson.loads(body if length is None else body[:length])
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    try:
        message.id = str(told.get("id", ""))
        _put(message.parameters, told.get("parameters"))
        at = len(body) if length is None else length
        for tensor in told["outputs"]:
            parameters = dict(tensor.get("parameters") or {})
            size = parameters.pop(SIZE, None)
            one = message.outputs.add(
                name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
            )
            _put(one.parameters, parameters)
            if size is None:
                raw = _written(tensor["datatype"], tensor["data"])
            else:
                raw = body[at : at + size]
                at += size
                if len(raw) != size:
                    raise ValueError(f"{tensor['name']} has {len(raw)} of {size} bytes")
            message.raw_output_contents.append(raw)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return message


def _written(datatype: str, data: Any) -> bytes:
    """The bytes of a tensor that came as JSON."""
    if datatype == "BYTES":
        return _texts(str(one).encode() for one in np.array(data, object).reshape(-1))
    if datatype == "BF16":  # the upper half of a float
        return (np.array(data, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(data, TYPES[datatype][1]).tobytes()


def _put(parameters: Any, given: Any) -> None:
    """Plain values into a message's parameters."""
    for name, value in given.items() if isinstance(given, dict) else ():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        elif isinstance(value, str):
            parameters[name].string_param = value
