"""KServe's v2 inference protocol over an `Inferrer`: what Triton accepts, refuses and answers.

Each output is one FP32 tensor of `width` numbers an item, made from the inputs: the same inputs
always give the same. Inputs may be JSON or binary, outputs are JSON.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from modelium.managers.emulated.server.http import Exchange
from modelium.managers.emulated.server.infer import Inferrer, Job
from modelium.managers.emulated.server.spec import Spec
from modelium.managers.emulated.server.words import Words

DATATYPES = {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
             "FP16", "FP32", "FP64", "BF16", "BYTES"}  # fmt: skip
_HEADER = b"inference-header-content-length"


class WrongInput(Exception):  # noqa: N818 - it is an answer
    """A request that is answered with 400."""


class KServe:
    """The endpoints under /v2/models."""

    def __init__(self, spec: Spec, inferrer: Inferrer) -> None:
        self.spec, self.inferrer = spec, inferrer

    def metadata(self) -> dict[str, Any]:
        """What the model takes and gives."""
        return {
            "name": self.spec.model, "versions": ["1"], "platform": "modelium_emulated",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, -1]}],
            "outputs": [{"name": "output", "datatype": "FP32",
                         "shape": [-1, self.spec.embedding_size]}],
        }  # fmt: skip

    def infer(self, exchange: Exchange) -> None:
        """Answer a POST to .../infer."""
        try:
            body = self._read(exchange)
            items, tokens = self._sizes(body)
            outputs = self._outputs(body)
        except WrongInput as error:
            exchange.answer(400, {"error": str(error)})
            return

        def done() -> None:
            if not exchange.gone:
                exchange.answer(200, self._answer(exchange.body, body, items, outputs))

        job = Job(items, tokens, done)
        exchange.on_gone = lambda: self.inferrer.drop(job)
        self.inferrer.put(job)

    def _answer(self, raw: bytes, body: dict[str, Any], items: int,
                outputs: list[str]) -> dict[str, Any]:  # fmt: skip
        width = self.spec.embedding_size
        words = Words(raw, self.spec.seed)
        made = [
            {"name": name, "datatype": "FP32", "shape": [items, width],
             "data": [x for _ in range(items) for x in words.vector(width)]}
            for name in outputs
        ]  # fmt: skip
        answer: dict[str, Any] = {
            "model_name": self.spec.model,
            "model_version": "1",
            "outputs": made,
        }
        return {"id": body["id"], **answer} if "id" in body else answer

    def _read(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON part; binary tensors follow it, and its length then stands in a header."""
        raw = exchange.body
        if (length := exchange.headers.get(_HEADER)) is not None:
            if not length.isdigit() or int(length) > len(raw):
                raise WrongInput(f"{_HEADER.decode()} is {length!r}, the body {len(raw)} bytes")
            raw = raw[: int(length)]
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise WrongInput(f"failed to parse the request JSON buffer: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("id", ""), str):
            raise WrongInput("the request has to be a JSON object, its id a string")
        return body

    def _sizes(self, body: dict[str, Any]) -> tuple[int, int]:
        """Items in the batch and tokens in all: the largest tensor of whole numbers."""
        inputs = body.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise WrongInput("inputs has to be a list with at least one tensor")
        sizes = [_size(tensor) for tensor in inputs]
        items = sizes[0][0]
        if any(first != items for first, _ in sizes):
            raise WrongInput("all inputs must have the same first dimension, the batch")
        if not 1 <= items <= self.inferrer.max_batch:
            raise WrongInput(
                f"inference request batch-size must be between 1 and "
                f"{self.inferrer.max_batch} for '{self.spec.model}', got {items}"
            )
        return items, max(tokens for _, tokens in sizes)

    def _outputs(self, body: dict[str, Any]) -> list[str]:
        wanted = body.get("outputs") or [{"name": "output"}]
        if not isinstance(wanted, list) or not all(
            isinstance(one, dict) and isinstance(one.get("name"), str) for one in wanted
        ):
            raise WrongInput("outputs has to be a list of objects with a name")
        if len(wanted) > 16:
            raise WrongInput(f"{len(wanted)} outputs are wanted; the model makes at most 16")
        return [one["name"] for one in wanted]


def _size(tensor: Any) -> tuple[int, int]:
    """First dimension of one input tensor, and how many token ids it holds; checked."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise WrongInput("each input has to be an object with a name")
    name, shape = tensor["name"], tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not shape
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    ):
        raise WrongInput(f"input '{name}': shape has to be a list of whole numbers, got {shape!r}")
    kind = tensor.get("datatype")
    if not isinstance(kind, str) or kind not in DATATYPES:
        known = ", ".join(sorted(DATATYPES))
        raise WrongInput(f"input '{name}': datatype {kind!r} is none of {known}")
    elements = math.prod(shape)
    tokens = elements if kind in ("INT32", "INT64") else 0
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        return shape[0], tokens
    if (given := _count(tensor.get("data"))) != elements:
        raise WrongInput(f"input '{name}': shape {shape} has {elements} elements, data {given}")
    return shape[0], tokens


def _count(data: Any) -> int:
    """Elements of nested lists."""
    level, elements = [data] if data is not None else [], 0
    while level:
        inner = []
        for one in level:
            if isinstance(one, list):
                inner.extend(one)
            else:
                elements += 1
        level = inner
    return elements
