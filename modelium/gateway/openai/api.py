"""OpenAI's calls."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from modelium.gateway.context import DESK
from modelium.gateway.errors import json_response
from modelium.gateway.model_lookup import model_row, model_rows
from modelium.gateway.openai.embedding import EMBEDDINGS
from modelium.gateway.openai.fields import check_fields
from modelium.gateway.openai.kserve_adapter import CHAT
from modelium.gateway.openai.streaming import stream
from modelium.gateway.proxy import whole
from modelium.gateway.request_parsing import read_ask, wrong

COMPLETIONS = "/v1/completions"
TENSORS_ONLY = "triton"
"""The runtime whose models all speak KServe's protocol."""
NEEDED = {
    CHAT: (("messages",), "a list of messages"),
    COMPLETIONS: (("prompt", "prompt_embeds"), "text"),
    EMBEDDINGS: (("input",), "text"),
}
"""Fields of which one has to be there: a model is not loaded for a request that must fail."""


async def completions(http: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _ask(http, COMPLETIONS)


async def chat_completions(http: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _ask(http, CHAT)


async def embeddings(http: web.Request) -> web.StreamResponse:
    """POST /v1/embeddings."""
    return await _ask(http, EMBEDDINGS)


async def _ask(http: web.Request, path: str) -> web.StreamResponse:
    desk, ask = http.app[DESK], await read_ask(http, path, partial(check, path))
    if desk.admin.runtime_of(ask.request.model) == TENSORS_ONLY:
        check_fields(ask.request.model, ask.body)  # before it is loaded for a request that fails
    if ask.stream and path != EMBEDDINGS:
        return await stream(desk, http, ask)
    return await whole(desk, ask)


def check(path: str, body: dict[str, Any]) -> None:
    """Raise ApiError (400) for a body that no engine can take."""
    fields, expected = NEEDED[path]
    if all(body.get(field) is None for field in fields):
        raise wrong(fields[0], None, expected)
    if path == CHAT and (not isinstance(body["messages"], list) or not body["messages"]):
        raise wrong("messages", body["messages"], expected)


async def models(http: web.Request) -> web.Response:
    """GET /v1/models: all that can be asked for, loaded or not."""
    rows = {row["name"]: row for row in model_rows(http)}
    cards = [_card(name) for name in rows]
    for alias, name in http.app[DESK].settings.aliases.items():
        if name in rows and alias not in rows:
            cards.append(_card(alias, name))
    return json_response({"object": "list", "data": cards})


async def model(http: web.Request) -> web.Response:
    """GET /v1/models/{model}."""
    name, model = http.match_info["model"], model_row(http)["name"]
    return json_response(_card(name, model if model != name else ""))


def _card(name: str, alias_of: str = "") -> dict[str, Any]:
    """vLLM, too, tells in `root` what an alias stands for."""
    card = {"id": name, "object": "model", "created": 0, "owned_by": "modelium"}
    return {**card, "root": alias_of} if alias_of else card
