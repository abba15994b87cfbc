"""Talking to engines: their answers as they come, and what those say of tokens and errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from modelium.errors import ModeliumError
from modelium.gateway.context import GatewayContext
from modelium.gateway.errors import ApiError, dumped
from modelium.gateway.request_parsing import Ask
from modelium.managers.engine import Engine

USAGE_WANTED = b'{"stream_options":{"include_usage":true},'
NOT_FOUND = 404
UNABLE = 422
BUSY = 503
BAD_GATEWAY = 502
LONGEST_ERROR = 2000
CUT_OFF = ("abort", "error")
"""Reasons for an answer's end which say that its engine gave it up."""
_BLAMES_REQUEST = re.compile("bad_?request|invalid_?request|not_?found|validation", re.IGNORECASE)
_UNLOADED = re.compile(rb"Request for unknown model: |Ping http://[^ ]*/-/routes ")
"""Triton and Ray Serve about a model that they do not, or no longer, have."""


class BrokenError(ModeliumError):
    """The engine did not answer, or broke while it did."""


@dataclass(slots=True)
class Given:
    """What an engine has answered, in one piece."""

    status: int
    body: bytes
    content_type: str = "application/json"
    tokens: tuple[int, int] = (0, 0)
    """Prompt, output."""
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        """The same, for the client."""
        return web.Response(
            status=self.status,
            body=self.body,
            headers={"Content-Type": self.content_type, **self.headers},
        )


@asynccontextmanager
async def called(
    desk: GatewayContext,
    engine: Engine,
    path: str,
    payload: bytes,
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The engine's answer, as it comes. Raises BrokenError where there is none.

    Whoever leaves before its end closes the connection, by which the engine gives the request up.
    """
    url = URL(engine.url + path, encoded=True)
    sent = {"Content-Type": "application/json", "X-Request-Id": request_id, **(headers or {})}
    try:
        async with desk.http.post(url, data=payload, headers=sent) as answer:
            yield answer
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise BrokenError(f"{engine.instance}: {error or type(error).__name__}") from error


def infer_path(engine: Engine) -> str:
    """Where an engine that speaks KServe's protocol takes tensors."""
    return f"{model_path(engine.name)}/infer"


def model_path(name: str) -> str:
    """Where such an engine tells of a model."""
    return f"/v2/models/{quote(name, safe='')}"


def openai_payload(ask: Ask, engine: Engine) -> bytes:
    """The client's body; with the engine's name for the model, and usage at a stream's end.

    The bytes stay as they are wherever that is possible.
    """
    body, same = ask.body, ask.body["model"] == engine.name
    needs_usage = ask.stream and not ask.wants_usage
    if same and not needs_usage:
        return ask.raw
    if same and "stream_options" not in body:
        return USAGE_WANTED + ask.raw.lstrip()[1:]
    if needs_usage:
        options = body.get("stream_options") or {}
        body = {**body, "stream_options": {**options, "include_usage": True}}
    return dumped({**body, "model": engine.name})


def json_of(body: bytes) -> Any:
    """A body as what its JSON says, or None."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def object_of(engine: Engine, body: bytes) -> dict[str, Any]:
    """A whole answer as the JSON object that it has to be. Raises BrokenError."""
    told = json_of(body)
    if not isinstance(told, dict):
        raise BrokenError(f"{engine.instance} did not answer with a JSON object")
    return told


def usage_of(body: Any) -> tuple[int, int]:
    """Prompt and output tokens that an answer says it took."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (
        prompt if isinstance(prompt, int) else 0,
        output if isinstance(output, int) else 0,
    )


def failure_in(said: Any) -> Given | None:
    """The failure that an answer of status 200 tells, with the status that it should have had.

    An engine that fails when its status has gone out says so in the answer: vLLM, Ray's models and
    Triton by an object "error", vLLM also by an answer's reason to end. 4xx if the request is to
    blame, else 500.
    """
    if not isinstance(said, dict):
        return None
    error = said if said.get("object") == "error" else said.get("error")
    if error:
        return Given(_status_of(error), dumped(said))
    choices = said.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") in CUT_OFF:
            return Given(500, dumped({"error": "its engine gave the request up"}))
    return None


def _status_of(error: Any) -> int:
    about = error if isinstance(error, dict) else {}
    for name in ("code", "status", "status_code"):
        code = about.get(name)
        code = int(code) if isinstance(code, str) and re.fullmatch("[0-9]{3}", code) else code
        if isinstance(code, int) and 400 <= code < 600:
            return code
    named = f"{about.get('type')} {about.get('code')}"
    return 400 if _BLAMES_REQUEST.search(named) else 500


def check_loaded(engine: Engine, status: int, body: bytes) -> None:
    """Raises BrokenError where a server of several models says that it has not this one."""
    if status in (400, NOT_FOUND, BUSY) and _UNLOADED.search(body):
        raise BrokenError(f"{engine.instance}: {body[:200].decode(errors='replace')}")


def engine_error(status: int, body: bytes) -> ApiError:
    """An engine's refusal or failure, in its own words; its failures are 502 here.

    Its 404 is 422: the model is there, but cannot do this, as a chat model no embeddings.
    """
    told = json_of(body)
    inner = told.get("error", told.get("detail")) if isinstance(told, dict) else None
    if isinstance(told, dict) and told.get("object") == "error":
        inner = told
    about = inner if isinstance(inner, dict) else {}
    message = about.get("message") or (inner if isinstance(inner, str) else "")
    message = message or body.decode(errors="replace").strip() or f"the engine answered {status}"
    param, code = about.get("param"), about.get("code")
    if status == NOT_FOUND:
        status, message = UNABLE, f"the model's engine cannot do this: {message}"
    return ApiError(
        status if status < 500 or status == BUSY else BAD_GATEWAY,
        str(message)[:LONGEST_ERROR],
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )
