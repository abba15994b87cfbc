"""The gateway as an aiohttp application: routes, and what holds for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web

from modelium.errors import ModeliumError
from modelium.gateway import inference, operating
from modelium.gateway.asking import request_id
from modelium.gateway.desk import DESK, Desk
from modelium.gateway.errors import ApiError, json_response
from modelium.gateway.openapi import document

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MODEL = r"{model:.+}"
"""Names may hold slashes, as in "org/name"."""


def make_app(desk: Desk) -> web.Application:
    """The application; it opens and closes the connections to the engines itself."""
    app = web.Application(middlewares=[_guarded], client_max_size=desk.settings.max_body_bytes)
    app[DESK] = desk
    app.cleanup_ctx.append(_connections)
    app.add_routes(
        [
            web.post("/v1/chat/completions", inference.chat_completions),
            web.post("/v1/completions", inference.completions),
            web.post("/v1/embeddings", inference.embeddings),
            web.get("/v1/models", inference.openai_models),
            web.get(f"/v1/models/{MODEL}", inference.openai_model),
            web.post(f"/predict/{MODEL}", inference.predict),
            web.get("/v2/health/live", operating.health),
            web.get("/v2/health/ready", operating.ready),
            web.post(f"/v2/models/{MODEL}/infer", inference.infer),
            web.get(f"/v2/models/{MODEL}/ready", inference.model_ready),
            web.get(f"/v2/models/{MODEL}", inference.model_metadata),
            web.get("/health", operating.health),
            web.get("/ready", operating.ready),
            web.get("/status", operating.status),
            web.get("/models", operating.models),
            web.post(f"/models/{MODEL}/{{verb:load|unload|sleep|wake|pin|unpin}}", operating.act),
            web.delete(f"/models/{MODEL}", operating.remove),
            web.get("/decisions", operating.decisions),
            web.get("/events", operating.events),
            web.get("/usage", operating.usage),
            web.get("/openapi.json", _openapi),
        ]
    )
    return app


async def _openapi(http: web.Request) -> web.Response:
    return json_response(document())


async def _connections(app: web.Application) -> AsyncIterator[None]:
    """The engines are on this machine or near: no limit, no proxies, no cookies."""
    desk = app[DESK]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5.0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=desk.settings.connect_timeout_s)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        desk.http = session
        yield


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in one shape, every answer with its request's id, CORS where it is allowed."""
    http = request
    http["id"] = request_id(http)
    try:
        answer = _preflight(http) or await handler(http)
    except ApiError as error:
        answer = error.response()
    except web.HTTPException as error:
        answer = ApiError(error.status, _words(http, error)).response()
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
    except ModeliumError as error:
        answer = ApiError(503, str(error)).response()
    if not answer.prepared:
        answer.headers["X-Request-Id"] = http["id"]
        for name, value in _cors(http).items():
            answer.headers[name] = value
    return answer


def _words(http: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"there is no {http.method} {http.path}; GET /openapi.json lists what there is"
    if error.status == 405:
        return f"{http.path} does not take {http.method}"
    return error.reason


def _preflight(http: web.Request) -> web.Response | None:
    """A browser's question whether it may call."""
    if http.method != "OPTIONS" or "Access-Control-Request-Method" not in http.headers:
        return None
    return web.Response(status=204 if _cors(http) else 403)


def _cors(http: web.Request) -> dict[str, str]:
    origin, allowed = http.headers.get("Origin"), http.app[DESK].settings.allowed_origins
    if not origin or not (origin in allowed or "*" in allowed):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key, X-Request-Id",
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Vary": "Origin",
    }
