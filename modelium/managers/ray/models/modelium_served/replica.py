"""One replica: takes requests over HTTP, and says how it is."""

import asyncio
import json
import os

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from .asked import RefusedError


class Replica:
    """Serves a folder: with a class of the user's, or as a language model."""

    def __init__(self, model: dict, route: str) -> None:
        self.route, self.busy, self.done = route, 0, 0
        if host := model.get("host"):
            _listen_only_at(host)
        if model.get("class") is not None:
            from .own import Own

            self.served = Own(model)
        else:
            from .language import Language

            self.served = Language(model)

    async def __call__(self, request) -> Response:
        path = request.scope["path"].removeprefix(self.route) or "/"
        if path == "/health":
            return JSONResponse(self.health())
        self.busy += 1
        try:
            return await self._answer(request, path)
        except RefusedError as error:
            return refusal(str(error), error.status, error.param)
        except HTTPException as error:
            return refusal(str(error.detail), error.status_code, headers=error.headers)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return refusal(f"{type(error).__name__}: {error}", 500)
        finally:
            self.busy -= 1
            self.done += 1

    async def _answer(self, request, path: str) -> Response:
        handler = self.served.paths.get((request.method, path))
        if handler is None:
            known = ", ".join(f"{method} {path}" for method, path in self.served.paths)
            raise RefusedError(
                f"{request.method} {path} is not served here, but {known}", status=404
            )
        if request.method == "GET":
            return await handler(None)
        try:
            body = json.loads(await request.body())
        except ValueError as error:
            raise RefusedError(f"the body is no JSON: {error}") from None
        return await handler(body)

    def health(self) -> dict:
        """Its process, what it does now, and a number that grows with its work."""
        return {
            "pid": os.getpid(),
            "busy": self.busy + getattr(self.served, "streams", 0),
            "work": self.done + getattr(self.served, "work", 0),
            "kind": type(self.served).__name__.lower(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }


def refusal(
    why: str, status: int, param: str | None = None, headers: dict | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": why, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def _listen_only_at(host: str) -> None:
    """Ray Serve 2.60 has a replica listen for other replicas at every address, whatever is set.

    Anybody who reaches that port can run code. It is opened after this constructor.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    at = f"[{host}]" if ":" in host else host
    replica.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]", at)
    )
