"""From an HTTP request to an `Ask`: what is wanted of which model, checked as far as needed here.

The body goes on to the engine as it is, but for the model's name; the engine checks the rest.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from modelium.gateway.access.auth import CALLER, Caller, named_well
from modelium.gateway.context import DESK, REQUEST_ID, GatewayContext
from modelium.gateway.errors import ApiError
from modelium.live.requests.interface import Request

BYTES_PER_TOKEN = 4
"""Of English text, roughly; the engine's own count replaces the guess."""
MOST_TOKENS = 1 << 31
LEAST_BYTES_PER_S = 16 << 10
"""A body that comes more slowly than this on the whole is given up: 128 kbit/s."""


@dataclass(slots=True)
class Ask:
    """One OpenAI request on its way to an engine."""

    path: str
    """The engine's endpoint, for engines that speak OpenAI."""
    raw: bytes
    """The body as the client sent it."""
    body: dict[str, Any]
    request: Request
    stream: bool = False
    wants_usage: bool = False
    """The client asked for the usage at the end of the stream itself."""


async def read_raw(http: web.Request) -> bytes:
    """The body. Raises ApiError: 400, 408, 413."""
    settings = http.app[DESK].settings
    parts: list[bytes] = []
    size, begun_s = 0, asyncio.get_running_loop().time()
    try:
        while True:
            due_s = begun_s + settings.read_timeout_s + size / LEAST_BYTES_PER_S
            async with asyncio.timeout_at(due_s):
                part = await http.content.readany()
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > settings.max_body_bytes:
                why = f"the body is larger than {settings.max_body_bytes} bytes"
                raise ApiError(413, why)
    except web.RequestPayloadError as error:
        raise ApiError(400, f"the body cannot be read: {error}") from None
    except TimeoutError:
        why = (
            f"only {size} bytes of the body came within {due_s - begun_s:.0f} s; the least rate is"
            f" {LEAST_BYTES_PER_S} bytes/s after {settings.read_timeout_s:g} s"
        )
        raise ApiError(408, why) from None


def parsed(raw: bytes) -> dict[str, Any]:
    """A body as a JSON object. Raises ApiError (400)."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body has to be a JSON object", code="invalid_json")
    return body


async def read_ask(http: web.Request, path: str, check: Callable[[dict[str, Any]], None]) -> Ask:
    """An OpenAI request whose body `check` finds fit. Raises ApiError."""
    raw = await read_raw(http)
    body = parsed(raw)
    model = text(body, "model", needed=True)
    check(body)
    stream = flag(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "an object")
    wants_usage = stream and bool(options.get("include_usage"))
    most = max(whole(body, "max_tokens") or 0, whole(body, "max_completion_tokens") or 0)
    session = text(body, "prompt_cache_key")
    request = new_request(http, model, most, session)
    request.prompt_tokens = len(raw) // BYTES_PER_TOKEN
    return Ask(path, raw, body, request, stream, wants_usage)


def new_request(
    http: web.Request,
    model: str,
    output_tokens: int = 0,
    session: str = "",
    organization: str = "",
) -> Request:
    """The place in the queue that this HTTP request has. Raises ApiError: 400, 429."""
    return request_for(
        http.app[DESK], http[CALLER], http.headers, http[REQUEST_ID], model, output_tokens,
        session, organization,
    )  # fmt: skip


def request_for(
    desk: GatewayContext,
    caller: Caller,
    headers: Mapping[str, str],
    request_id: str,
    model: str,
    output_tokens: int = 0,
    session: str = "",
    organization: str = "",
) -> Request:
    """The place in the queue of a caller's request. Raises ApiError: 400, 429."""
    acting = caller.acting_for(organization)
    request = Request(
        desk.model_called(model),
        id=request_id,
        organization=acting,
        session=session or named_well("X-Session", headers.get("X-Session", "")),
        slo_class=named_well("X-Slo-Class", headers.get("X-Slo-Class", "")),
        priority=min(_priority(headers), caller.top_priority),
        output_tokens=output_tokens,
        deadline_s=_deadline_s(headers),
    )
    desk.limits.admit(acting)
    return request


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own X-Request-Id, or a new one."""
    given = headers.get("X-Request-Id", "")
    fine = given.isascii() and given.isprintable() and len(given) <= 128
    return given if given and fine else uuid4().hex


def _priority(headers: Mapping[str, str]) -> int:
    given = headers.get("X-Priority", "0")
    try:
        return max(-100, min(100, int(given)))
    except ValueError:
        raise wrong("X-Priority", given, "a whole number, -100 to 100") from None


def _deadline_s(headers: Mapping[str, str]) -> float | None:
    given = headers.get("X-Max-Wait")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise wrong("X-Max-Wait", given, "seconds")
    return seconds


def text(body: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    """A field of text. Raises ApiError (400)."""
    value = body.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value):
        raise wrong(name, value, "text")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false. Raises ApiError (400)."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return bool(value)


def whole(body: Mapping[str, Any], name: str) -> int | None:
    """A field with a count. Raises ApiError (400)."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_TOKENS:
        raise wrong(name, value, "a whole number, 0 or more")
    return value


def number(body: Mapping[str, Any], name: str) -> float | None:
    """A field with a number. Raises ApiError (400)."""
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise wrong(name, value, "a number")
    return value


def wrong(name: str, value: Any, expected: str) -> ApiError:
    """A field that holds something else than it should."""
    if value is None:
        return ApiError(400, f"{name} is missing, expected {expected}", param=name)
    return ApiError(400, f"{name} is {reprlib.repr(value)}, expected {expected}", param=name)
