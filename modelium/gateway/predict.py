"""The original project's call, for models of every kind.

POST /predict/{model} with {"prompt": ...} for text models, {"inputs": ...} for others; a user's own
class (on Ray Serve) is handed the whole body, whatever is in it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from modelium.gateway.context import DESK, GatewayContext
from modelium.gateway.engines import BAD_GATEWAY, Given, called, json_of, usage_of
from modelium.gateway.errors import ApiError, dumped
from modelium.gateway.kserve.api import infer_at
from modelium.gateway.openai.kserve_adapter import openai_answer
from modelium.gateway.proxy import seated, talk
from modelium.gateway.request_parsing import Ask, new_request, number, parsed, read_raw, text, whole
from modelium.live.requests.interface import Request
from modelium.managers.engine import Engine

OWN_CLASSES = "ray"
"""The runtime that serves users' own classes beside language models."""
DEEPEST = 16
"""Dimensions of a tensor, at most."""


async def predict(http: web.Request) -> web.Response:
    """POST /predict/{model}."""
    body, desk = parsed(await read_raw(http)), http.app[DESK]
    model = desk.model_called(http.match_info["model"])
    if desk.admin.runtime_of(model) != OWN_CLASSES:
        _check(body)  # else nobody knows what is right until the model is there
    whole(body, "max_tokens")
    organization = text(body, "organizationId")
    request = new_request(http, model, whole(body, "max_tokens") or 0, organization=organization)
    given = await seated(desk, request, lambda engine: _ask_engine(http, body, request, engine))
    return given.response()


def _check(body: dict[str, Any]) -> None:
    """Raises ApiError (400) for what neither text models nor others take."""
    whole(body, "max_tokens")
    number(body, "temperature")
    if "inputs" not in body:
        text(body, "prompt", needed=True)


async def _ask_engine(
    http: web.Request, body: dict[str, Any], request: Request, engine: Engine
) -> Given:
    desk = http.app[DESK]
    if engine.api == "openai" and engine.extra.get("plain"):
        async with called(desk, engine, "/", dumped(body), request.id) as answer:
            return Given(answer.status, await answer.read(), answer.content_type)
    _check(body)
    if "inputs" in body:
        return await infer_at(desk, engine, dumped(_tensors(body["inputs"], engine)), request)
    if engine.api == "kserve":
        return await _ask_text_model(desk, body, request, engine)
    asked: dict[str, Any] = {"model": engine.name}
    asked |= {key: body[key] for key in ("prompt", "max_tokens", "temperature") if key in body}
    ask = Ask("/v1/completions", dumped(asked), asked, request)
    given = await talk(desk, ask, engine)
    return _told(given, body, engine) if given.status == 200 else given


async def _ask_text_model(
    desk: GatewayContext, body: dict[str, Any], request: Request, engine: Engine
) -> Given:
    """A model behind KServe's protocol: a text for text, else the tensors that it gives."""
    tensors = [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [body["prompt"]]}]
    for field, kind in (("max_tokens", "INT32"), ("temperature", "FP32")):
        if (value := body.get(field)) is not None:
            tensors.append({"name": field, "datatype": kind, "shape": [1], "data": [value]})
    given = await infer_at(desk, engine, dumped({"inputs": tensors}), request)
    if given.status == 200 and b'"text_output"' in given.body:
        ask = Ask("/v1/completions", b"", body, request)
        told = openai_answer(ask, json_of(given.body))
        return _told(Given(200, dumped(told), tokens=usage_of(told)), body, engine)
    return given


def _told(given: Given, body: dict[str, Any], engine: Engine) -> Given:
    """OpenAI's answer in fewer words."""
    told = json_of(given.body)
    try:
        choice = told["choices"][0]
        answer = {
            "model": engine.model,
            "output": choice["text"],
            "finish_reason": choice.get("finish_reason"),
            "usage": told.get("usage"),
            "organizationId": body.get("organizationId"),
        }
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ApiError(BAD_GATEWAY, f"{engine.instance} answered without a text") from None
    return Given(200, dumped(answer), tokens=given.tokens)


def _tensors(inputs: Any, engine: Engine) -> dict[str, Any]:
    """KServe's tensors as they are, or rows of numbers for a model's one input."""
    if isinstance(inputs, list) and inputs and all(isinstance(row, dict) for row in inputs):
        return {"inputs": inputs}
    names = engine.extra.get("inputs") or ["input"]
    rows = inputs if isinstance(inputs, list) else [inputs]
    flat: list[Any] = []
    shape = _shape(rows, flat, DEEPEST)
    texts = sum(isinstance(value, str) for value in flat)
    if texts not in (0, len(flat)):
        raise ApiError(422, "inputs mixes numbers and text", param="inputs")
    kind = "BYTES" if texts else "FP32"
    return {"inputs": [{"name": names[0], "shape": shape, "datatype": kind, "data": flat}]}


def _shape(rows: Any, flat: list[Any], deepest: int) -> list[int]:
    """The shape of nested lists, whose values are appended to `flat`. Raises ApiError (422)."""
    if not isinstance(rows, list):
        if isinstance(rows, bool) or not isinstance(rows, str | int | float):
            why = f"inputs holds {rows!r:.40}, expected numbers or text"
            raise ApiError(422, why, param="inputs")
        flat.append(rows)
        return []
    if not deepest:
        raise ApiError(422, f"inputs has more than {DEEPEST} dimensions", param="inputs")
    shapes = [_shape(row, flat, deepest - 1) for row in rows]
    if any(shape != shapes[0] for shape in shapes):
        why = "inputs is ragged: its rows are not of one length"
        raise ApiError(422, why, param="inputs")
    return [len(rows), *(shapes[0] if shapes else [])]
