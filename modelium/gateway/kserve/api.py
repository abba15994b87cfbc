"""KServe's v2 inference protocol (Triton's): tensors in, tensors out, in JSON or binary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from modelium import __version__
from modelium.errors import did_you_mean
from modelium.gateway.context import DESK, GatewayContext
from modelium.gateway.engines import (
    Given,
    called,
    check_loaded,
    engine_error,
    failure_in,
    infer_path,
    json_of,
    model_path,
    object_of,
)
from modelium.gateway.errors import ApiError, dumped, json_response, refused
from modelium.gateway.model_lookup import model_rows
from modelium.gateway.proxy import seated
from modelium.gateway.request_parsing import flag, new_request, parsed, read_raw, wrong
from modelium.live.requests.interface import RefusedError, Request
from modelium.managers.engine import Engine

BINARY = "Inference-Header-Content-Length"
"""KServe's extension: tensors follow the JSON, of this length, as bytes."""
METADATA_S = 5.0
"""An engine that is ready tells what its model takes within this time."""


EXTENSIONS = ("binary_tensor_data", "model_repository")
VERSION = "1"
"""The one version that is served of a model."""
STATES = {"ready": "READY", "loading": "LOADING", "waking": "LOADING", "leaving": "UNLOADING"}
"""A model's status in the words of Triton's repository; all others are "UNAVAILABLE"."""
_ENDS = re.compile(r"(?:/versions/[^/]+)?(?:/(?:infer|ready|config|stats|generate|trace/.*))?$")
"""What may follow a model's name in a path."""
ELSEWHERE = {
    "config": "Modelium does not tell models' configurations",
    "stats": "Modelium's figures are its metrics, for Prometheus",
}


def about_server() -> dict[str, Any]:
    """What this is."""
    return {"name": "modelium", "version": __version__, "extensions": list(EXTENSIONS)}


async def server(http: web.Request) -> web.Response:
    """GET /v2."""
    return json_response(about_server())


async def infer(http: web.Request) -> web.Response:
    """POST /v2/models/{model}/infer."""
    raw = await read_raw(http)
    headers = {}
    if (length := http.headers.get(BINARY)) is not None:
        if not length.isascii() or not length.isdigit() or int(length[:12]) > len(raw):
            raise wrong(BINARY, length, f"0 to {len(raw)}, the length of the body")
        headers = {"Content-Type": "application/octet-stream", BINARY: length}
    else:
        body = parsed(raw)
        if not isinstance(body.get("inputs"), list):
            raise wrong("inputs", body.get("inputs"), "a list of tensors")
    desk = http.app[DESK]
    model = desk.model_called(http.match_info["model"])
    if not desk.admin.runtime_of(model):
        raise _unknown(http)
    request = new_request(http, model)
    given = await seated(
        desk, request, lambda engine: infer_at(desk, engine, raw, request, headers)
    )
    return given.response()


async def infer_at(
    desk: GatewayContext,
    engine: Engine,
    payload: bytes,
    request: Request,
    headers: Mapping[str, str] | None = None,
) -> Given:
    """Let an engine infer; its refusals are ApiErrors."""
    if engine.api != "kserve":
        raise ApiError(422, f"{engine.model} is a language model: use /v1/completions")
    async with called(desk, engine, infer_path(engine), payload, request.id, headers) as answer:
        given = Given(answer.status, await answer.read(), answer.content_type)
        binary = answer.headers.get(BINARY)
    check_loaded(engine, given.status, given.body)
    told = object_of(engine, given.body) if given.status == 200 and binary is None else None
    given = failure_in(told) or given
    if 400 <= given.status < 500:
        raise engine_error(given.status, given.body)
    if binary is not None:
        _name_model(given, engine, binary)
    elif engine.name != engine.model and told is not None and given.status == 200:
        given.body = dumped({**told, "model_name": engine.model})
    return given


def _name_model(given: Given, engine: Engine, length: str) -> None:
    """Before binary tensors, too, the client's name for the model takes the engine's place."""
    size = int(length) if length.isascii() and length.isdigit() else 0
    head = json_of(given.body[:size])
    if engine.name != engine.model and isinstance(head, dict):
        told = dumped({**head, "model_name": engine.model})
        given.body, length = told + given.body[size:], str(len(told))
    given.headers[BINARY] = length


async def metadata(http: web.Request) -> web.Response:
    """GET /v2/models/{model}."""
    return json_response(await about_model(http.app[DESK], _named(http)))


async def about_model(desk: GatewayContext, row: dict[str, Any]) -> dict[str, Any]:
    """A model's tensors as its engine tells them, none while none is ready."""
    about = {"name": row["name"], "versions": [VERSION], "platform": row["runtime"]}
    about |= {"inputs": [], "outputs": []}
    for one in row["instances"]:
        if one["api"] == "kserve" and one["phase"] == "ready":
            about |= await _told_at(desk, f"{one['url']}{model_path(one['engine_name'])}")
            break
    return {**about, "name": row["name"], "versions": [VERSION]}


async def _told_at(desk: GatewayContext, url: str) -> dict[str, Any]:
    """What an engine tells of its model; nothing if it does not answer."""
    try:
        timeout = aiohttp.ClientTimeout(METADATA_S)
        async with desk.http.get(URL(url, encoded=True), timeout=timeout) as answer:
            told = json_of(await answer.read()) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError):
        return {}
    return told if isinstance(told, dict) else {}


async def ready(http: web.Request) -> web.Response:
    """GET /v2/models/{model}/ready: 200 if a request would be answered now, 503 if it waits."""
    row = _named(http)
    is_ready = row["status"] == "ready"
    return json_response({"name": row["name"], "ready": is_ready}, 200 if is_ready else 503)


async def elsewhere(http: web.Request) -> web.Response:
    """POST to what is no call of a model."""
    raise _unknown(http)


async def index(http: web.Request) -> web.Response:
    """POST /v2/repository/index: all models, and whether they could answer now."""
    raw = await read_raw(http)
    return json_response(repository(http.app[DESK], flag(parsed(raw) if raw else {}, "ready")))


def repository(desk: GatewayContext, only_ready: bool) -> list[dict[str, str]]:
    """All models, or those that are ready, as Triton's repository tells of them."""
    rows = [_entry(row) for row in desk.admin.models()]
    return [row for row in rows if row["state"] == "READY" or not only_ready]


def _entry(row: dict[str, Any]) -> dict[str, str]:
    state = STATES.get(row["status"], "UNAVAILABLE")
    reason = row["error"] or row["status"] if state == "UNAVAILABLE" else ""
    return {"name": row["name"], "version": VERSION, "state": state, "reason": reason}


async def change(http: web.Request) -> web.Response:
    """POST /v2/repository/models/{model}/load|unload; answers when it is done."""
    raw = await read_raw(http)
    given = (parsed(raw) if raw else {}).get("parameters") or {}
    if not isinstance(given, dict):
        raise wrong("parameters", given, "an object")
    await changed(http.app[DESK], http.match_info["verb"], http.match_info["model"], given)
    return json_response({})


async def changed(desk: GatewayContext, verb: str, model: str, parameters: Iterable[str]) -> None:
    """Load or unload a model as the policy's operator would. Raises ApiError."""
    for name in parameters:
        if name != "unload_dependents":  # nothing depends on a model here
            why = f"{name} is not taken: settings of {model} stand in the configuration"
            raise ApiError(400, why, param="parameters")
    try:
        await (desk.admin.load if verb == "load" else desk.admin.unload)(model)
    except RefusedError as error:
        raise refused(error) from None


def check_version(model: str, version: str) -> None:
    """Raise ApiError (404) for a version that is not there; none said is the one that is."""
    if version not in ("", VERSION):
        raise _no_version(model, version)


def _no_version(model: str, version: str) -> ApiError:
    why = f"{model} has no version {version!r}: Modelium serves one of each model, {VERSION}"
    return ApiError(404, why)


def _named(http: web.Request) -> dict[str, Any]:
    """The model that the path names. Raises ApiError (404)."""
    name = http.app[DESK].model_called(http.match_info["model"])
    for row in model_rows(http):
        if row["name"] == name:
            return row
    raise _unknown(http)


def _unknown(http: web.Request) -> ApiError | web.HTTPException:
    """Why nothing is at a path below /v2/models/.

    Names may hold slashes, so only the names of the models tell where one ends.
    """
    given = http.match_info["model"]
    names = [row["name"] for row in model_rows(http)]
    aliases = http.app[DESK].settings.aliases
    names += [alias for alias, name in aliases.items() if name in names and alias not in names]
    known = [name for name in names if f"{given}/".startswith(f"{name}/")]
    if not known:
        name = _ENDS.sub("", given)
        why = f"no model called {name!r}.{did_you_mean(name, names)}"
        return ApiError(404, why, code="model_not_found", param="model")
    model = max(known, key=len)
    end = given[len(model) + 1 :]
    if found := re.fullmatch("versions/([^/]+)/?(.*)", end):
        if found[1] != VERSION:
            return _no_version(model, found[1])
        end = found[2]
    calls = {"infer": "POST", "ready": "GET", "": "GET"}
    if end in calls and http.method != calls[end]:
        return web.HTTPMethodNotAllowed(http.method, [calls[end]])
    why = ELSEWHERE.get(end, "there are infer, ready and versions/1")
    return ApiError(404, f"{model} has no {end!r}: {why}")
