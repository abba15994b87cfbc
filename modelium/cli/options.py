"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from modelium.client.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def server(command: F) -> F:
    """--url and --key: which running gateway is meant."""
    url = click.option("--url", default="", help="Gateway URL.  [default: $MODELIUM_URL]")
    key = click.option("--key", default="", help="API key.  [default: $MODELIUM_API_KEY]")
    return url(key(command))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Times(click.FloatRange):
    """How many times as fast: above 0, and a number; a range takes nan."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it."""
        times: float = super().convert(value, param, ctx)
        if not math.isfinite(times):
            self.fail(f"{value} is not a finite number", param, ctx)
        return times


def client(url: str, key: str) -> Client:
    """The gateway that --url, $MODELIUM_URL or the configuration names."""
    import os

    from modelium.client.client import URL_VARIABLE, Client

    return Client(url or os.environ.get(URL_VARIABLE, "") or _configured(), key)


def _configured() -> str:
    """The address in the configuration that `modelium run` would use here."""
    from modelium.config import find, read

    path = find()
    if path is None:
        return ""
    gateway = read(path).gateway
    scheme = "https" if gateway.tls_certificate else "http"
    host = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{gateway.port}"
