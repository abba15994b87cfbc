"""The gateway described for machines (OpenAPI 3.1), at /openapi.json."""

from __future__ import annotations

from functools import cache
from typing import Any

from modelium import __version__

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": 2147483647}
ANYTHING: Schema = {"type": "object"}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS = (400, 401, 403, 404, 409, 413, 422, 429, 503)


@cache
def document() -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Modelium",
            "version": __version__,
            "description": "Many models on few GPUs behind one address.",
        },
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {**_users(), **_kserve(), **_operators()},
    }


def _users() -> Schema:
    return {
        "/v1/chat/completions": {"post": _post("Answer a conversation", _chat(), stream=True)},
        "/v1/completions": {"post": _post("Go on with a text", _completion(), stream=True)},
        "/v1/embeddings": {"post": _post("Turn text into vectors", _embedding())},
        "/v1/models": {"get": _get("All models that can be asked for")},
        "/v1/models/{model}": {"get": _get("One model", model=True)},
        "/predict/{model}": {"post": _post("Ask any model", _predict(), model=True)},
    }


def _kserve() -> Schema:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": NAME,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": NAME,
            "data": {"type": "array"},
        },
    }
    body = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {"type": "array", "items": tensor}},
    }
    return {
        "/v2/health/live": {"get": _get("The server is well")},
        "/v2/health/ready": {"get": _get("Requests are admitted")},
        "/v2/models/{model}": {"get": _get("One model", model=True)},
        "/v2/models/{model}/ready": {"get": _get("A request would not wait", model=True)},
        "/v2/models/{model}/infer": {"post": _post("Tensors in, tensors out", body, model=True)},
    }


def _operators() -> Schema:
    query = [
        {"name": "model", "in": "query", "schema": TEXT},
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 10000},
        },
    ]
    acts = {
        f"/models/{{model}}/{verb}": {"post": _get(says, model=True)}
        for verb, says in {
            "load": "Have it loaded where the policy puts it",
            "unload": "Let it finish and go",
            "sleep": "Let it finish and sleep",
            "wake": "Wake it",
            "pin": "Keep it loaded whatever the policy thinks",
            "unpin": "Let the policy decide again",
        }.items()
    }
    return {
        "/health": {"get": _get("The server is well")},
        "/ready": {"get": _get("Requests are admitted")},
        "/status": {"get": _get("GPUs and totals")},
        "/models": {"get": _get("Models and their instances")},
        **acts,
        "/models/{model}": {"delete": _get("Unload it and serve it no more", model=True)},
        "/decisions": {"get": {**_get("What was decided, and why"), "parameters": query}},
        "/usage": {"get": _get("Requests, tokens and GPU-seconds by organization")},
    }


def _get(says: str, *, model: bool = False) -> Schema:
    operation: Schema = {"summary": says, "responses": _responses(ANYTHING)}
    if model:
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": NAME}
        ]
    return operation


def _post(says: str, body: Schema, *, model: bool = False, stream: bool = False) -> Schema:
    operation = _get(says, model=model)
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": body}},
    }
    if stream:
        content = operation["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": TEXT}
    return operation


def _responses(body: Schema) -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told: Schema = {str(status): {"description": "an error", "content": error} for status in ERRORS}
    # Health and readiness say more than an error does.
    told["503"] = {"description": "not now", "content": {"application/json": {"schema": ANYTHING}}}
    fine = {"description": "the answer", "content": {"application/json": {"schema": body}}}
    return {"200": fine, **told}


def _asking(**more: Schema) -> Schema:
    return {
        "model": NAME,
        "max_tokens": COUNT,
        "temperature": {"type": ["number", "null"]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        **more,
    }


def _chat() -> Schema:
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": TEXT, "content": TEXT},
    }
    messages = {"type": "array", "items": message, "minItems": 1}
    fields = _asking(messages=messages, max_completion_tokens=COUNT)
    return {"type": "object", "required": ["model", "messages"], "properties": fields}


def _completion() -> Schema:
    return {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": _asking(prompt=TEXT),
    }


def _embedding() -> Schema:
    return {
        "type": "object",
        "required": ["model", "input"],
        "properties": {"model": NAME, "input": {"type": ["string", "array"]}},
    }


def _predict() -> Schema:
    return {
        "type": "object",
        "properties": {
            "prompt": NAME,
            "organizationId": {"type": ["string", "null"]},
            "max_tokens": COUNT,
            "temperature": {"type": ["number", "null"]},
            "inputs": {"type": "array"},
        },
        "anyOf": [{"required": ["prompt"]}, {"required": ["inputs"]}],
    }
