"""The calls that operators make: what there is, why, and what to do about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from modelium.gateway.context import DESK, GatewayContext
from modelium.gateway.errors import ApiError, json_response, refused
from modelium.gateway.model_lookup import model_row
from modelium.gateway.openai.sse_writer import ClientGoneError, Outlet
from modelium.live.requests.interface import RefusedError
from modelium.units import rfc3339

MOST_DECISIONS = 10_000
KEPT_EVENTS = 1000
"""Events that a slow listener may be behind; then it misses the oldest."""
ALIVE_EVERY_S = 15.0


async def live(http: web.Request) -> web.Response:
    """GET /health/live: this process answers. A restart would help only where it does not."""
    return json_response({"live": True})


async def health(http: web.Request) -> web.Response:
    """GET /health: how the server is: ok, degraded (its journal cannot be written) or stopping.

    The status is 200 whenever it answers: requests are served all the same.
    """
    status = http.app[DESK].admin.status()
    degraded = "degraded" if status["journal"]["failing"] else "ok"
    told = {"status": "stopping" if status["stopping"] else degraded}
    return json_response({**told, "stopping": status["stopping"], "journal": status["journal"]})


async def ready(http: web.Request) -> web.Response:
    """GET /ready: requests are admitted; 503 while the server is stopping."""
    stopping = http.app[DESK].admin.status()["stopping"]
    return json_response({"ready": not stopping}, 503 if stopping else 200)


async def status(http: web.Request) -> web.Response:
    """GET /status."""
    return json_response(http.app[DESK].admin.status())


async def models(http: web.Request) -> web.Response:
    """GET /models."""
    return json_response({"models": http.app[DESK].admin.models()})


async def model(http: web.Request) -> web.Response:
    """GET /models/{model}."""
    return json_response(model_row(http))


async def decisions(http: web.Request) -> web.Response:
    """GET /decisions?model=&limit=: what was decided, why, and how it ended; newest first."""
    given = http.query.get("limit", "100")
    if not given.isdecimal() or len(given) > 6 or not 0 < int(given) <= MOST_DECISIONS:
        raise ApiError(
            400, f"limit is {given!r:.20}, expected 1 to {MOST_DECISIONS}", param="limit"
        )
    lines = await http.app[DESK].admin.decisions(http.query.get("model", ""), int(given))
    return json_response({"decisions": lines})


async def usage(http: web.Request) -> web.Response:
    """GET /usage: requests, tokens and GPU-seconds by organization."""
    return json_response({"organizations": await http.app[DESK].admin.usage()})


async def act(http: web.Request) -> web.Response:
    """POST /models/{model}/load|unload|sleep|wake|update|pin|unpin; answers when it is done."""
    desk, model = http.app[DESK], http.match_info["model"]
    try:
        return json_response(await _verbs(desk, http)[http.match_info["verb"]](model))
    except RefusedError as error:
        raise refused(error) from None


async def reload(http: web.Request) -> web.Response:
    """POST /reload: take up what has changed in the configuration; says what."""
    try:
        return json_response(await http.app[DESK].admin.reload())
    except RefusedError as error:
        raise refused(error) from None


async def remove(http: web.Request) -> web.Response:
    """DELETE /models/{model}: unload it and serve it no more."""
    model = http.match_info["model"]
    try:
        await http.app[DESK].admin.remove(model)
    except RefusedError as error:
        raise refused(error) from None
    return json_response({"removed": model})


def _verbs(
    desk: GatewayContext, http: web.Request
) -> Mapping[str, Callable[[str], Awaitable[dict[str, Any]]]]:
    admin = desk.admin

    async def pinned(model: str) -> dict[str, Any]:
        return admin.pin(model)

    async def unpinned(model: str) -> dict[str, Any]:
        return admin.pin(model, pinned=False)

    async def slept(model: str) -> dict[str, Any]:
        level = http.query.get("level", "1")
        if level not in ("1", "2"):
            raise ApiError(400, f"level is {level!r:.20}, expected 1 or 2", param="level")
        return await admin.sleep(model, int(level))

    return {
        "load": admin.load,
        "unload": admin.unload,
        "sleep": slept,
        "wake": admin.wake,
        "update": admin.update,
        "pin": pinned,
        "unpin": unpinned,
    }


async def events(http: web.Request) -> web.StreamResponse:
    """GET /events: what happens, as server-sent events."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(KEPT_EVENTS)

    def hear(what: str, about: Mapping[str, Any]) -> None:
        if queue.full():
            queue.get_nowait()
        data = orjson.dumps({"time": rfc3339(time.time()), **about}, default=str)
        queue.put_nowait(b"event: " + what.encode() + b"\ndata: " + data + b"\n\n")

    out, stop = Outlet(http), http.app[DESK].admin.subscribe(hear)
    try:
        await out.write(b": listening\n\n")
        while True:
            try:
                async with asyncio.timeout(ALIVE_EVERY_S):
                    told = await queue.get()
            except TimeoutError:
                told = b": nothing happens\n\n"
            await out.write(told)
    except ClientGoneError:
        return out.response
    finally:
        stop()
