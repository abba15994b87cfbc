"""KServe's v2 inference protocol (Triton's): tensors in, tensors out, in JSON or binary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from modelium import __version__
from modelium.gateway.answering import seated
from modelium.gateway.asking import new_request, parsed, read_raw, wrong
from modelium.gateway.desk import DESK, Desk
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
from modelium.gateway.errors import ApiError, dumped, json_response
from modelium.gateway.roster import model_row
from modelium.live.seats import Request
from modelium.managers.engine import Engine

BINARY = "Inference-Header-Content-Length"
"""KServe's extension: tensors follow the JSON, of this length, as bytes."""
METADATA_S = 5.0
"""An engine that is ready tells what its model takes within this time."""


async def server(http: web.Request) -> web.Response:
    """GET /v2."""
    return json_response({"name": "modelium", "version": __version__, "extensions": []})


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
    desk, request = http.app[DESK], new_request(http, http.match_info["model"])
    given = await seated(
        desk, request, lambda engine: infer_at(desk, engine, raw, request, headers)
    )
    return given.response()


async def infer_at(
    desk: Desk,
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
        given.headers[BINARY] = binary
    elif engine.name != engine.model and told is not None and given.status == 200:
        given.body = dumped({**told, "model_name": engine.model})
    return given


async def metadata(http: web.Request) -> web.Response:
    """GET /v2/models/{model}; its tensors as its engine tells them, none while none is ready."""
    row = model_row(http)
    about = {"name": row["name"], "versions": ["1"], "platform": row["runtime"]}
    about |= {"inputs": [], "outputs": []}
    for one in row["instances"]:
        if one["api"] == "kserve" and one["phase"] == "ready":
            about |= await _told_at(http.app[DESK], f"{one['url']}{model_path(one['engine_name'])}")
            break
    return json_response({**about, "name": row["name"]})


async def _told_at(desk: Desk, url: str) -> dict[str, Any]:
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
    row = model_row(http)
    is_ready = row["status"] == "ready"
    return json_response({"name": row["name"], "ready": is_ready}, 200 if is_ready else 503)
