"""A user's own class: made with the folder's path if it wants it, called with each request's JSON.

class Model:
    def __init__(self, path): ...
    def __call__(self, body): return {"answer": ...}

It answers what can be written as JSON, or a Response of starlette with a status and a type of its
own. What it raises is a failure, 500, but starlette's HTTPException (and FastAPI's) has its status.
"""

import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path

from starlette.responses import Response

from .asked import RefusedError


class Own:
    """The class that `model["class"]` names, "module:Class" or "" for the only one of model.py."""

    def __init__(self, model: dict) -> None:
        folder = model["path"]
        sys.path.insert(0, folder)
        kind = _class(model["class"], folder)
        given = dict(model.get("args", {}))
        if "path" in inspect.signature(kind).parameters:
            given.setdefault("path", folder)
        self.made = kind(**given)
        if not callable(self.made):
            raise TypeError(f"{kind.__name__} has no __call__(self, body) to answer requests with")
        self.paths = {("POST", "/"): self.answer}

    async def answer(self, body) -> Response:
        """What the class makes of a body; it blocks in a thread of its own."""
        if inspect.iscoroutinefunction(type(self.made).__call__):
            made = await self.made(body)
        else:
            made = await asyncio.to_thread(self.made, body)
        if isinstance(made, Response):
            return made
        try:
            content = json.dumps(made, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise RefusedError(f"the model's answer is no JSON: {error}", status=500) from None
        return Response(content, media_type="application/json")


def _class(named: str, folder: str) -> type:
    module_name, _, name = named.partition(":")
    module = importlib.import_module(module_name or "model")
    here = str(Path(getattr(module, "__file__", "") or "").resolve().parent)
    if here != str(Path(folder).resolve()):
        raise ImportError(f"{module.__name__} comes from {here}, not from the model's folder")
    found = {
        key: kind
        for key, value in vars(module).items()
        if inspect.isclass(kind := getattr(value, "func_or_class", value))  # @serve.deployment
        and kind.__module__ == module.__name__
    }
    if name:
        if name not in found:
            told = ", ".join(found) or "none"
            raise AttributeError(f"{module.__name__}.py has no class {name}; it has {told}")
        return found[name]
    fit = [kind for kind in found.values() if "__call__" in vars(kind)]
    if len(fit) != 1:
        told = ", ".join(kind.__name__ for kind in fit) or "none"
        raise AttributeError(
            f"{module.__name__}.py needs one class with __call__, it has {told}; name one with the"
            ' setting class: "module:Class"'
        )
    return fit[0]


def _plain(value):
    """Arrays and tensors as lists."""
    for way in ("tolist", "model_dump"):
        if hasattr(value, way):
            return getattr(value, way)()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
