"""The calls that users make: OpenAI's, the original project's /predict, KServe's v2 protocol."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from modelium.gateway.answering import Given, seated, talk, whole
from modelium.gateway.asking import (
    Ask,
    new_request,
    number,
    read_ask,
    read_json,
    text,
    wrong,
)
from modelium.gateway.asking import whole as count
from modelium.gateway.desk import DESK, caller
from modelium.gateway.engines import JSON, called
from modelium.gateway.errors import ApiError, json_response
from modelium.gateway.streaming import stream
from modelium.live.seats import Request
from modelium.managers.engine import Engine

BINARY = "Inference-Header-Content-Length"
"""KServe's extension: tensors follow the JSON as bytes."""


async def completions(http: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _openai(http, "/v1/completions")


async def chat_completions(http: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _openai(http, "/v1/chat/completions")


async def embeddings(http: web.Request) -> web.StreamResponse:
    """POST /v1/embeddings."""
    ask = await read_ask(http, "/v1/embeddings")
    ask.stream = False
    return await whole(http.app[DESK], ask)


async def _openai(http: web.Request, path: str) -> web.StreamResponse:
    ask, desk = await read_ask(http, path), http.app[DESK]
    if path == "/v1/completions" and "prompt" not in ask.body and "prompt_embeds" not in ask.body:
        raise wrong("prompt", None, "text")
    if path == "/v1/chat/completions" and not isinstance(ask.body.get("messages"), list):
        raise wrong("messages", ask.body.get("messages"), "a list of messages")
    return await (stream(desk, http, ask) if ask.stream else whole(desk, ask))


async def openai_models(http: web.Request) -> web.Response:
    """GET /v1/models: all that can be asked for, loaded or not."""
    caller(http)
    return json_response({"object": "list", "data": [_card(m) for m in _models(http)]})


async def openai_model(http: web.Request) -> web.Response:
    """GET /v1/models/{model}."""
    caller(http)
    return json_response(_card(_model(http)))


def _card(model: dict[str, Any]) -> dict[str, Any]:
    return {"id": model["name"], "object": "model", "created": 0, "owned_by": "modelium"}


async def predict(http: web.Request) -> web.Response:
    """POST /predict/{model}: {"prompt": ...} for text models, {"inputs": ...} for others."""
    desk, name = http.app[DESK], http.match_info["model"]
    body = await read_json(http)
    request = new_request(http, name, count(body, "max_tokens") or 0)
    request.organization = text(body, "organizationId") or request.organization
    number(body, "temperature")
    if "inputs" not in body:
        text(body, "prompt", needed=True)
    given = await seated(desk, request, lambda engine: _predicted(http, body, request.id, engine))
    return given.response()


async def _predicted(http: web.Request, body: dict[str, Any], number: str, engine: Engine) -> Given:
    desk = http.app[DESK]
    if "inputs" in body:
        return await _infer(http, engine, orjson.dumps(_tensors(body["inputs"], engine)), JSON)
    if engine.api == "openai" and engine.extra.get("plain"):
        async with called(desk, engine, "/", orjson.dumps(body), JSON) as answer:
            return Given(answer.status, await answer.read(), answer.content_type)
    wanted: dict[str, Any] = {
        key: body[key] for key in ("prompt", "max_tokens", "temperature") if key in body
    }
    ask = Ask("/v1/completions", {"model": engine.model, **wanted}, Request(engine.model, number))
    given = await talk(desk, ask, engine)
    if given.status != 200:
        return given
    told = orjson.loads(given.body)
    answer_ = {
        "model": engine.model,
        "output": told["choices"][0]["text"],
        "finish_reason": told["choices"][0]["finish_reason"],
        "usage": told["usage"],
        "organizationId": body.get("organizationId"),
    }
    return Given(200, orjson.dumps(answer_), tokens=given.tokens)


def _tensors(inputs: Any, engine: Engine) -> dict[str, Any]:
    """KServe's tensors as they are, or rows of numbers for a model's one input."""
    if isinstance(inputs, list) and inputs and all(isinstance(row, dict) for row in inputs):
        return {"inputs": inputs}
    names = engine.extra.get("inputs") or ["input"]
    rows = inputs if isinstance(inputs, list) else [inputs]
    flat: list[Any] = []
    shape = _shape(rows, flat)
    kind = "BYTES" if any(isinstance(value, str) for value in flat) else "FP32"
    return {"inputs": [{"name": names[0], "shape": shape, "datatype": kind, "data": flat}]}


def _shape(rows: Any, flat: list[Any]) -> list[int]:
    """The shape of nested lists, whose values are appended to `flat`. Raises ApiError (422)."""
    if not isinstance(rows, list):
        if not isinstance(rows, str | int | float):
            raise ApiError(422, f"inputs holds {rows!r:.40}, expected numbers or text")
        flat.append(rows)
        return []
    shapes = [_shape(row, flat) for row in rows]
    if any(shape != shapes[0] for shape in shapes):
        raise ApiError(422, "inputs is ragged: its rows are not of one length")
    return [len(rows), *(shapes[0] if shapes else [])]


async def infer(http: web.Request) -> web.Response:
    """POST /v2/models/{model}/infer, tensors in JSON or binary."""
    desk, raw = http.app[DESK], await _raw(http)
    headers = dict(JSON)
    if BINARY in http.headers:
        headers = {
            "Content-Type": "application/octet-stream", BINARY: http.headers[BINARY]
        }  # fmt: skip
    else:
        body = await read_json(http)
        if not isinstance(body.get("inputs"), list):
            raise wrong("inputs", body.get("inputs"), "a list of tensors")
    request = new_request(http, http.match_info["model"])
    given = await seated(desk, request, lambda engine: _infer(http, engine, raw, headers))
    return given.response()


async def _infer(
    http: web.Request, engine: Engine, payload: bytes, headers: dict[str, str]
) -> Given:
    if engine.api != "kserve":
        raise ApiError(422, f"{engine.model} is a language model: use /v1/completions")
    path = f"/v2/models/{engine.name}/infer"
    async with called(http.app[DESK], engine, path, payload, headers) as answer:
        given = Given(answer.status, await answer.read(), answer.content_type)
        if BINARY in answer.headers:
            given.headers[BINARY] = answer.headers[BINARY]
            return given
    if given.content_type == "application/json":
        told = orjson.loads(given.body)
        if "model_name" in told:
            given.body = orjson.dumps({**told, "model_name": engine.model})
        elif given.status >= 400:
            raise ApiError(given.status, str(told.get("error", told)))
    return given


async def _raw(http: web.Request) -> bytes:
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge:
        most = http.app[DESK].settings.max_body_bytes
        raise ApiError(413, f"the body is larger than {most} bytes") from None


async def model_metadata(http: web.Request) -> web.Response:
    """GET /v2/models/{model}."""
    caller(http)
    model = _model(http)
    about = {"name": model["name"], "versions": ["1"], "platform": model["runtime"]}
    return json_response({**about, "inputs": [], "outputs": []})


async def model_ready(http: web.Request) -> web.Response:
    """GET /v2/models/{model}/ready: 200 if a request would be answered now, 503 if it waits."""
    caller(http)
    ready = _model(http)["status"] == "ready"
    return json_response({"ready": ready}, 200 if ready else 503)


def _models(http: web.Request) -> list[dict[str, Any]]:
    return http.app[DESK].admin.models()


def _model(http: web.Request) -> dict[str, Any]:
    name = http.match_info["model"]
    for model in _models(http):
        if model["name"] == name:
            return model
    raise ApiError(404, f"no model called {name!r}.", code="model_not_found", param="model")
