"""What the cluster says of the models that calls name."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from modelium.errors import did_you_mean
from modelium.gateway.context import DESK, GatewayContext
from modelium.gateway.errors import ApiError


def model_rows(http: web.Request) -> list[dict[str, Any]]:
    """All models that are served."""
    return http.app[DESK].admin.models()


def model_row(http: web.Request) -> dict[str, Any]:
    """The model that the path names. Raises ApiError (404)."""
    return row_of(http.app[DESK], http.match_info["model"])


def row_of(desk: GatewayContext, name: str) -> dict[str, Any]:
    """The model of this name or alias. Raises ApiError (404)."""
    name, rows = desk.model_called(name), desk.admin.models()
    for row in rows:
        if row["name"] == name:
            return row
    hint = did_you_mean(name, [row["name"] for row in rows])
    raise ApiError(404, f"no model called {name!r}.{hint}", code="model_not_found", param="model")
