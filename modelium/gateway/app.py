"""The gateway as an aiohttp application: routes, and what holds for all of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import HttpVersion11, hdrs, web

from modelium.errors import ModeliumError
from modelium.gateway import admin_api
from modelium.gateway.access.auth import authorize
from modelium.gateway.access.connections import CONNECTIONS, Connections
from modelium.gateway.context import DESK, REQUEST_ID, GatewayContext
from modelium.gateway.errors import ApiError, json_response, starting
from modelium.gateway.kserve import api as kserve
from modelium.gateway.openai import api as openai
from modelium.gateway.openai.sse_writer import send
from modelium.gateway.openapi import document
from modelium.gateway.predict import predict
from modelium.gateway.request_parsing import request_id

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MODEL = r"{model:.+}"
"""Names may hold slashes, as in "org/name"."""
VERBS = r"{verb:load|unload|sleep|wake|update|pin|unpin}"
KEEP_ALIVE_S = 3.0
"""Shorter than vLLM's 5 s: a connection that the engine is about to close is not used again."""
LARGE_BYTES = 64 << 10
LIVE = ("/health/live", "/v2/health/live")
"""Whoever asks here wants to know whether the process runs, not whether it can serve."""
CORS_HEADERS = "Authorization, Content-Type, X-Api-Key, X-Request-Id, X-Organization"
CORS_METHODS = "GET, POST, DELETE"

log = logging.getLogger(__name__)


def make_app(desk: GatewayContext, connections: Connections) -> web.Application:
    """The application; it opens and closes the connections to the engines itself."""
    app = web.Application(middlewares=[_at_work, _guarded])
    app[DESK], app[CONNECTIONS] = desk, connections
    app.cleanup_ctx.append(_connections)
    app.on_response_prepare.append(_label)
    routes = [
        web.get("/health", admin_api.health),
        web.get("/health/live", admin_api.live),
        web.get("/v2/health/live", admin_api.live),
        web.get("/ready", admin_api.ready),
        web.get("/health/ready", admin_api.ready),
        web.get("/v2/health/ready", admin_api.ready),
        web.get("/openapi.json", _openapi),
        *_for_users(),
        *_for_operators(),
        web.route("*", "/{rest:.*}", _nothing_here),
    ]
    for route in routes:
        route.kwargs["expect_handler"] = _expected
    app.add_routes(routes)
    return app


async def _expected(http: web.Request) -> web.Response | None:
    """Send `100 Continue`. The library's own handler fails at values that are not ASCII."""
    expect = http.headers.get("Expect", "")
    if http.version < HttpVersion11:
        return None
    if expect.lower() != "100-continue":
        return _told(http, ApiError(417, f"Expect: {expect!r:.80}; only 100-continue is known"))
    with contextlib.suppress(ConnectionError):  # a client that has gone is found out later
        await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    http.writer.output_size = 0  # the answer itself has not begun
    return None


async def _nothing_here(http: web.Request) -> web.StreamResponse:
    """What no other route matches: 405 if one would with another method, else 404."""
    allowed: set[str] = set()
    for resource in http.app.router.resources():
        allowed |= (await resource.resolve(http))[1]
    if allowed := allowed - {hdrs.METH_ANY}:
        raise web.HTTPMethodNotAllowed(http.method, allowed)
    raise web.HTTPNotFound


def _for_users() -> list[web.RouteDef]:
    posts = {
        "/v1/chat/completions": openai.chat_completions,
        "/v1/completions": openai.completions,
        "/v1/embeddings": openai.embeddings,
        f"/predict/{MODEL}": predict,
        f"/v2/models/{MODEL}/versions/1/infer": kserve.infer,
        f"/v2/models/{MODEL}/infer": kserve.infer,
        f"/v2/models/{MODEL}": kserve.elsewhere,
        "/v2/repository/index": kserve.index,
    }
    gets = {
        "/v1/models": openai.models,
        f"/v1/models/{MODEL}": openai.model,
        "/v2": kserve.server,
        f"/v2/models/{MODEL}/versions/1/ready": kserve.ready,
        f"/v2/models/{MODEL}/versions/1": kserve.metadata,
        f"/v2/models/{MODEL}/ready": kserve.ready,
        f"/v2/models/{MODEL}": kserve.metadata,
    }
    return [
        *(web.post(path, _needs("user", handler)) for path, handler in posts.items()),
        *(web.get(path, _needs("user", handler)) for path, handler in gets.items()),
    ]


def _for_operators() -> list[web.RouteDef]:
    gets = {
        "/status": admin_api.status,
        "/models": admin_api.models,
        f"/models/{MODEL}": admin_api.model,
        "/decisions": admin_api.decisions,
        "/events": admin_api.events,
        "/usage": admin_api.usage,
    }
    return [
        *(web.get(path, _needs("admin", handler)) for path, handler in gets.items()),
        web.post("/reload", _needs("admin", admin_api.reload)),
        web.post(f"/models/{MODEL}/{VERBS}", _needs("admin", admin_api.act)),
        web.delete(f"/models/{MODEL}", _needs("admin", admin_api.remove)),
        web.post(
            f"/v2/repository/models/{MODEL}/{{verb:load|unload}}", _needs("admin", kserve.change)
        ),
    ]


def _needs(scope: str, handler: Handler) -> Handler:
    """Let only those in who may: before a byte of the body is read."""

    async def let_in(http: web.Request) -> web.StreamResponse:
        authorize(http, scope)
        return await handler(http)

    return let_in


async def _openapi(http: web.Request) -> web.Response:
    return json_response(document())


async def _connections(app: web.Application) -> AsyncIterator[None]:
    """The engines are on this machine or near: no limit, no proxies, no cookies."""
    desk = app[DESK]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=desk.settings.connect_timeout_s)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    ) as session:
        desk.http = session
        yield


@web.middleware
async def _at_work(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A connection with a request is not one that stands about."""
    with request.app[CONNECTIONS].at_work(request.protocol):
        return await handler(request)


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in the shape that its clients know; nobody is sent to without a limit."""
    request[REQUEST_ID] = request_id(request.headers)
    try:
        answer = _preflight(request) or _starting(request) or await handler(request)
    except ApiError as error:
        answer = _told(request, error)
    except web.HTTPException as error:
        answer = _told(request, ApiError(error.status, _words(request, error)))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
    except ModeliumError as error:
        answer = _told(request, ApiError(503, str(error)))
    except Exception:
        log.exception("%s %s, request %s", request.method, request.path, request[REQUEST_ID])
        why = f"an error of the gateway itself; its log has more on request {request[REQUEST_ID]}"
        answer = _told(request, ApiError(500, why))
    body = getattr(answer, "body", None)
    if isinstance(body, bytes) and len(body) > LARGE_BYTES:
        await send(request, answer)
    return answer


def _starting(http: web.Request) -> web.Response | None:
    """The answer of a server that has the address and nothing to serve with yet."""
    if http.app[DESK].is_open:
        return None
    if http.path in LIVE:
        return json_response({"live": True, "status": "starting"})
    raise starting()


def _told(http: web.Request, error: ApiError) -> web.Response:
    return error.response(kserve=http.path.startswith("/v2"))


def _words(http: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"there is no {http.method} {http.path!r}; GET /openapi.json lists what there is"
    if error.status == 405:
        return f"{http.path!r} does not take {http.method}"
    return error.reason


async def _label(http: web.Request, answer: web.StreamResponse) -> None:
    """Every answer has its request's id, and tells browsers whether they may read it."""
    answer.headers["X-Request-Id"] = http.get(REQUEST_ID, "")
    answer.headers.update(_cors(http))


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
        "Access-Control-Allow-Headers": CORS_HEADERS,
        "Access-Control-Allow-Methods": CORS_METHODS,
        "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
        "Vary": "Origin",
    }
