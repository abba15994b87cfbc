"""A small client of a running gateway's admin calls, for the command line and for scripts."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from modelium.errors import ModeliumError

URL_VARIABLE = "MODELIUM_URL"
KEY_VARIABLE = "MODELIUM_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"
ELSEWHERE = f"--url or ${URL_VARIABLE} names another address"


class ServerError(ModeliumError):
    """The server is not there, or has refused; the message is its own."""


class Client:
    """Talks to one gateway. `url` and `key` default to $MODELIUM_URL and $MODELIUM_API_KEY."""

    def __init__(self, url: str = "", key: str = "", *, ca_file: str | None = None) -> None:
        self.url = _address(url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        self.key = key or os.environ.get(KEY_VARIABLE, "")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ServerError(f"no key has such characters: {self.key!r} (--key, ${KEY_VARIABLE})")
        self._tls = ssl.create_default_context(cafile=ca_file) if "https:" in self.url else None

    def status(self) -> dict[str, Any]:
        """GPUs and totals."""
        answer: dict[str, Any] = self._call("GET", "/status", "gpus")
        return answer

    def models(self) -> list[dict[str, Any]]:
        """Every model with its instances."""
        answer: list[dict[str, Any]] = self._call("GET", "/models", "models")["models"]
        return answer

    def act(self, model: str, verb: str) -> dict[str, Any]:
        """load, unload, sleep, wake, update, pin or unpin a model; returns when it is done."""
        answer: dict[str, Any] = self._call(
            "POST", f"/models/{quote(model)}/{verb}", "status", timeout_s=3600.0
        )
        return answer

    def reload(self) -> dict[str, Any]:
        """Have the configuration read again; says what changed."""
        answer: dict[str, Any] = self._call("POST", "/reload", "why", timeout_s=3600.0)
        return answer

    def delete(self, model: str) -> dict[str, Any]:
        """Have a model unloaded and served no more."""
        answer: dict[str, Any] = self._call(
            "DELETE", f"/models/{quote(model)}", "removed", timeout_s=3600.0
        )
        return answer

    def decisions(self, model: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The latest decisions, newest first."""
        query = urlencode({"model": model, "limit": limit})
        told = self._call("GET", f"/decisions?{query}", "decisions")
        answer: list[dict[str, Any]] = told["decisions"]
        return answer

    def usage(self) -> list[dict[str, Any]]:
        """Requests, tokens and GPU-seconds by organization."""
        answer: list[dict[str, Any]] = self._call("GET", "/usage", "organizations")["organizations"]
        return answer

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What happens, as it happens; a ServerError when the server is gone."""
        with self._open("GET", "/events", timeout_s=3600.0) as stream:
            kind = ""
            try:
                for raw in stream:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event:"):
                        kind = line[6:].strip()
                    elif line.startswith("data:"):
                        yield kind, json.loads(line[5:])
            except (OSError, HTTPException, ValueError) as error:
                raise ServerError(f"{self.url} broke off its events: {error}") from None
        raise ServerError(f"{self.url} has ended")

    def _call(self, method: str, path: str, holds: str, timeout_s: float = 30.0) -> Any:
        """The answer, which is an object that `holds` this; others are not Modelium's."""
        with self._open(method, path, timeout_s) as answer:
            try:
                told = json.loads(answer.read())
            except (OSError, HTTPException) as error:
                raise ServerError(f"{self.url} broke off its answer: {error}") from None
            except ValueError:
                told = None
        if not isinstance(told, dict) or holds not in told:
            raise ServerError(f"{self.url} is something else than Modelium's gateway; {ELSEWHERE}")
        return told

    def _open(self, method: str, path: str, timeout_s: float) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            return urllib.request.urlopen(request, timeout=timeout_s, context=self._tls)
        except urllib.error.HTTPError as error:
            raise ServerError(_told(error)) from None
        except (OSError, HTTPException, ValueError) as error:
            why = getattr(error, "reason", error)
            if isinstance(why, ssl.SSLCertVerificationError):
                raise ServerError(
                    f"{self.url} has an untrusted certificate: {why.verify_message}. Set"
                    " $SSL_CERT_FILE to a file of certificates to trust, such as the server's own"
                ) from None
            raise ServerError(
                f"no answer from {self.url}: {why}. Is `modelium run` running? ({ELSEWHERE})"
            ) from None


def _address(url: str) -> str:
    """`url` without a slash at its end, and with the scheme that people leave out."""
    address = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        good = False
    if not good or not address.isprintable() or " " in address:
        raise ServerError(f"{url!r} is no server's address, such as {DEFAULT_URL}; {ELSEWHERE}")
    return address


def _told(error: urllib.error.HTTPError) -> str:
    """The gateway's own words, if it has sent any."""
    text = error.read().decode(errors="replace")
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text.strip() or error.reason
    hint = f" (${KEY_VARIABLE} holds the key)" if error.code in (401, 403) else ""
    return f"{error.code}: {message}{hint}"
