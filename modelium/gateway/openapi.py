"""The gateway described for machines (OpenAPI 3.1), at /openapi.json."""

from __future__ import annotations

from functools import cache

from modelium import __version__
from modelium.gateway import schemas as s
from modelium.gateway.schemas import Schema

LIMITED = (400, 403, 404, 408, 413, 422, 429, 502, 503)
"""What may become of a request to a model."""
NAMED, PLAIN = (403, 404, 503), (403, 503)
DONE = (400, 403, 404, 409, 503)
"""What may become of an operator's order."""


@cache
def document() -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Modelium",
            "version": __version__,
            "description": "Many models on few GPUs behind one address. A request whose model is"
            " not loaded waits until it is; a stream gets comments meanwhile. Model names may hold"
            " slashes.",
        },
        "components": {
            "schemas": {"Error": s.ERROR, "KServeError": s.KSERVE_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {**_openai(), **_kserve(), **_operators(), **_open()},
    }


def _openai() -> Schema:
    return {
        "/v1/chat/completions": {
            "post": _ask("Answer a conversation", s.CHAT, s.object_of("choices"), stream=True)
        },
        "/v1/completions": {
            "post": _ask("Go on with a text", s.COMPLETION, s.object_of("choices"), stream=True)
        },
        "/v1/embeddings": {
            "post": _ask("Turn text into vectors", s.EMBEDDING, s.object_of("data"))
        },
        "/v1/models": {"get": _call("All models that can be asked for", s.object_of("data"))},
        "/v1/models/{model}": {"get": _call("One model", s.object_of("id"), NAMED, model=True)},
        "/predict/{model}": {
            "post": _ask("Ask a model of any kind", s.PREDICT, s.ANYTHING, model=True)
        },
    }


def _kserve() -> Schema:
    infer = _ask("Tensors in, tensors out", s.TENSORS, s.ANYTHING, model=True, kserve=True)
    about, is_ready = s.object_of("name", "versions", "platform"), s.object_of("ready")
    ready = _call("A request would not wait", is_ready, NAMED, model=True, kserve=True)
    ready["responses"]["503"] = _answer(s.ANYTHING, "it would wait, or is refused")
    told = _call("One model", about, NAMED, model=True, kserve=True)
    model = {"": {"get": told}, "/ready": {"get": ready}, "/infer": {"post": infer}}
    errors = (400, 403, 408, 413, 503)
    index = _call("All models and their states", s.INDEX, errors, kserve=True)
    index["requestBody"] = {"content": {"application/json": {"schema": s.READY_ONLY}}}
    change = {
        f"/v2/repository/models/{{model}}/{verb}": {"post": _changed(says)}
        for verb, says in {"load": "Have it loaded", "unload": "Let it finish and go"}.items()
    }
    return {
        "/v2/repository/index": {"post": index},
        **change,
        "/v2": {"get": _call("The server", s.object_of("name", "version"), kserve=True)},
        **{f"/v2/models/{{model}}{end}": call for end, call in model.items()},
        **{f"/v2/models/{{model}}/versions/1{end}": call for end, call in model.items()},
    }


def _changed(says: str) -> Schema:
    """A change of the repository."""
    call = _call(says, s.ANYTHING, (*DONE, 408, 413), model=True, kserve=True)
    call["requestBody"] = {"content": {"application/json": {"schema": s.PARAMETERS}}}
    return call


def _operators() -> Schema:
    verbs = {
        "load": "Have it loaded where the policy puts it; answers when it is ready",
        "unload": "Let it finish and go; a load or wake under way is cancelled",
        "sleep": "Let it finish and sleep",
        "wake": "Wake it",
        "update": "Replace copies that were loaded from older files; `updated` says how",
        "pin": "Keep it loaded whatever the policy thinks",
        "unpin": "Let the policy decide again",
    }
    acts: Schema = {
        f"/models/{{model}}/{verb}": {"post": _call(says, s.MODEL, DONE, model=True)}
        for verb, says in verbs.items()
    }
    acts["/models/{model}/sleep"]["post"]["parameters"].append(
        s.query("level", {"enum": [1, 2]}, "2 discards the weights, 1 keeps them in host RAM")
    )
    decisions = _call("What was decided, why, and how it ended", s.object_of("decisions"))
    decisions["responses"]["400"] = _error()
    decisions["parameters"] = [
        s.query("model", s.TEXT, "Of this model only"),
        s.query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}, "Newest first"),
    ]
    events = _call("What happens, as it happens", s.EVENTS)
    events["responses"]["200"] = _answer(s.EVENTS, "for ever", "text/event-stream")
    usage = _call("Requests, tokens, GPU-seconds by organization", s.object_of("organizations"))
    return {
        "/status": {"get": _call("GPUs and totals", s.object_of("gpus", "policy"))},
        "/models": {"get": _call("Models and their instances", s.object_of("models"))},
        "/models/{model}": {
            "get": _call("One model and its instances", s.MODEL, NAMED, model=True),
            "delete": _call("Serve it no more", s.object_of("removed"), DONE, model=True),
        },
        **acts,
        "/reload": {
            "post": _call(
                "Take up what has changed in the configuration, as a whole or not at all",
                s.object_of("why", "changed", "restart"),
                (403, 409, 503),
            )
        },
        "/decisions": {"get": decisions},
        "/usage": {"get": usage},
        "/events": {"get": events},
    }


def _open() -> Schema:
    """What needs no key."""
    how = "How the server is: ok, degraded (its journal cannot be written) or stopping"
    runs, admits = "Liveness: the process answers", "Readiness: requests are admitted"
    paths: Schema = {"/health": {"get": _call(how, s.object_of("status", "journal"), ())}}
    for path in ("/health/live", "/v2/health/live"):
        paths[path] = {"get": _call(runs, s.object_of("live"), ())}
    for path in ("/ready", "/health/ready", "/v2/health/ready"):
        paths[path] = {"get": _call(admits, s.object_of("ready"), ())}
        paths[path]["get"]["responses"]["503"] = _answer(s.ANYTHING, "it is stopping")
    paths["/openapi.json"] = {"get": _call("This document", s.object_of("openapi"), ())}
    for one in paths.values():
        one["get"]["security"] = []
        one["get"]["responses"].pop("401", None)
    return paths


def _call(
    says: str,
    gives: Schema,
    errors: tuple[int, ...] = PLAIN,
    *,
    model: bool = False,
    kserve: bool = False,
) -> Schema:
    """One operation without a body."""
    told = {str(status): _error(kserve=kserve) for status in (401, *errors)}
    if 429 in errors:
        told["429"]["headers"] = told["503"]["headers"] = {"Retry-After": s.RETRY_AFTER}
    operation: Schema = {
        "summary": says,
        "responses": {"200": _answer(gives, "the answer"), **told},
    }
    if model:
        operation["parameters"] = [s.MODEL_IN_PATH]
    return operation


def _ask(
    says: str,
    takes: Schema,
    gives: Schema,
    *,
    model: bool = False,
    stream: bool = False,
    kserve: bool = False,
) -> Schema:
    """One request to a model."""
    operation = _call(says, gives, LIMITED, model=model, kserve=kserve)
    operation["parameters"] = [*operation.get("parameters", ()), *s.REQUEST_HEADERS]
    content = {"application/json": {"schema": takes}}
    operation["requestBody"] = {"required": True, "content": content}
    if stream:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": s.EVENTS}
    return operation


def _answer(schema: Schema, says: str, kind: str = "application/json") -> Schema:
    return {"description": says, "content": {kind: {"schema": schema}}}


def _error(*, kserve: bool = False) -> Schema:
    name = "KServeError" if kserve else "Error"
    return _answer({"$ref": f"#/components/schemas/{name}"}, "an error")
