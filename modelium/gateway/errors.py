"""Errors as clients expect them: a status, and OpenAI's or KServe's JSON object."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
from aiohttp import web

from modelium.errors import ModeliumError
from modelium.live.requests.interface import RefusedError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
"""By status; all others are "server_error"."""
STARTED_S = 2.0
"""Clients may try again after this time: engines that are adopted have answered by then, mostly."""


class ApiError(ModeliumError):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s = retry_after_s

    def as_dict(self) -> dict[str, Any]:
        """The JSON object that clients get, in OpenAI's shape."""
        kind = TYPES.get(self.status, "server_error")
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self, *, kserve: bool = False) -> web.Response:
        """The whole answer, in OpenAI's shape or KServe's, whose clients take a text only."""
        told = {"error": str(self)} if kserve else self.as_dict()
        return web.Response(
            status=self.status,
            body=orjson.dumps(told),
            content_type="application/json",
            headers=self.headers(),
        )

    def headers(self) -> dict[str, str]:
        """When to come again, where that is known."""
        if self.retry_after_s is None or not math.isfinite(self.retry_after_s):
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def refused(error: RefusedError) -> ApiError:
    """The cluster's refusal as an answer."""
    codes = {404: "model_not_found", 429: "queue_full"}
    return ApiError(
        error.status,
        str(error),
        code=codes.get(error.status),
        param="model" if error.status == 404 else None,
        retry_after_s=error.retry_after_s,
    )


def starting() -> ApiError:
    """What every call gets until there is something to serve."""
    return ApiError(503, "the server is starting", code="starting", retry_after_s=STARTED_S)


def dumped(value: Any) -> bytes:
    """JSON; also of numbers that orjson reads and does not write."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def json_response(value: Any, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(status=status, body=dumped(value), content_type="application/json")
