"""JSON schemas of what the gateway takes and gives; engines may take more than is said here."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
ANYTHING: Schema = {"type": "object"}
EVENTS: Schema = {"description": "Server-sent events whose data is JSON (OpenAI's end: [DONE])"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": 2147483647}


def object_of(*fields: str) -> Schema:
    """An object that has at least these fields."""
    return {"type": "object", "required": list(fields)}


ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": MAYBE_TEXT,
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
"""OpenAI's shape; the engine's own errors have a number as their code."""
KSERVE_ERROR: Schema = {**object_of("error"), "properties": {"error": TEXT}}
MODEL = object_of("name", "status", "runtime", "gpus", "qps", "idle_s", "bytes_per_gpu")
RETRY_AFTER: Schema = {"description": "Seconds, by the load's estimate", "schema": {"minimum": 1}}

MODEL_IN_PATH: Schema = {"name": "model", "in": "path", "required": True, "schema": NAME}


def query(name: str, schema: Schema, says: str) -> Schema:
    """A parameter in the query."""
    return {"name": name, "in": "query", "description": says, "schema": schema}


def _header(name: str, schema: Schema, says: str) -> Schema:
    return {"name": name, "in": "header", "description": says, "schema": schema}


_WORD: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}
REQUEST_HEADERS = [
    _header("X-Request-Id", _WORD, "Comes back with the answer, and goes to the engine"),
    _header("X-Organization", _WORD, "Who asks, unless the key says it"),
    _header("X-Session", _WORD, "Requests of one session go to one instance, if so configured"),
    _header("X-Slo-Class", _WORD, "Kept in the journal"),
    _header(
        "X-Priority",
        {"type": "integer", "minimum": -100, "maximum": 100},
        "Higher is served first; above 0 needs a key with the scope admin, where keys are needed",
    ),
    _header("X-Max-Wait", {"type": "number", "minimum": 0}, "Seconds to wait for an engine"),
]

_ASKING: Schema = {
    "model": NAME,
    "max_tokens": COUNT,
    "temperature": MAYBE_NUMBER,
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"]},
}
_MESSAGE: Schema = {**object_of("role", "content"), "properties": {"role": TEXT, "content": TEXT}}
CHAT: Schema = {
    **object_of("model", "messages"),
    "properties": {
        **_ASKING,
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        "max_completion_tokens": COUNT,
    },
}
COMPLETION: Schema = {**object_of("model", "prompt"), "properties": {**_ASKING, "prompt": TEXT}}
EMBEDDING: Schema = {
    **object_of("model", "input"),
    "properties": {"model": NAME, "input": {"type": ["string", "array"]}},
}
PREDICT: Schema = {
    "type": "object",
    "properties": {
        "prompt": NAME,
        "organizationId": {"type": ["string", "null"], "maxLength": 128},
        "max_tokens": COUNT,
        "temperature": MAYBE_NUMBER,
        "inputs": {"type": "array"},
    },
    "anyOf": [{"required": ["prompt"]}, {"required": ["inputs"]}],
}
_TENSOR: Schema = {
    **object_of("name", "shape", "datatype"),
    "properties": {
        "name": NAME,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": NAME,
        "data": {"type": "array"},
    },
}
TENSORS: Schema = {
    **object_of("inputs"),
    "properties": {"inputs": {"type": "array", "items": _TENSOR}},
}
READY_ONLY: Schema = {
    "type": "object",
    "properties": {"ready": {"type": ["boolean", "null"], "description": "Only those"}},
}
INDEX: Schema = {"type": "array", "items": object_of("name", "version", "state", "reason")}
PARAMETERS: Schema = {
    "type": "object",
    "properties": {
        "parameters": {
            "type": "object",
            "properties": {"unload_dependents": {"type": "boolean"}},
            "additionalProperties": False,
        }
    },
}
