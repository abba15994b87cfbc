"""Emulated engines, as real processes; how to speak to them."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from modelium.managers import EmulatedManager
from modelium.managers.engine import Engine, Order

AT_ONCE = {"speed": "inf", "stages": {"process": 0.0}, "sleep_s": {}, "wake_s": {}}
STEADY = {
    **AT_ONCE,
    "speed": 1.0,
    "engine": {
        "kind": "generate",
        "kv_tokens": 10_000_000,
        "step": {"decode_c": 0.01, "mixed_c": 0.02},
    },
    "max_model_len": 10_000_000,
}
"""Ten milliseconds a token."""
TOKENS = 9_000_000
"""Asked of it, they take a day."""
WITHIN_S = 300.0
"""Whatever a test waits for has come by then, on the slowest machine."""
INFER = {**AT_ONCE, "engine": {"kind": "infer", "latency_s": [[0.01, 0.012, 0.014, 0.016]]}}


class Client:
    """Sends requests to one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        address = urlsplit(engine.url)
        self.host, self.port = address.hostname or "", address.port or 0

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and content: JSON as an object, else text."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=WITHIN_S)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        try:
            connection.request(method, path, content, {"content-type": "application/json",
                                                       **headers})  # fmt: skip
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.headers.get_content_type() == "application/json":
            return answer.status, json.loads(text)
        return answer.status, text.decode()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", path, body)

    def events(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream, without the last, which must be [DONE]."""
        status, text = self.post(path, stream=True, **body)
        assert status == 200
        *events, end, rest = text.split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        assert all(event.startswith("data: ") for event in events)
        return [json.loads(event[6:]) for event in events]

    def metric(self, name: str) -> float:
        _, text = self.ask("GET", "/metrics")
        found = [line for line in text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def until(self, name: str, value: float) -> None:
        """Wait until a figure of the engine has a value."""
        give_up_s = time.monotonic() + WITHIN_S
        while self.metric(name) != value:
            assert time.monotonic() < give_up_s, f"{name} is {self.metric(name)}, not {value}"

    def socket(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=WITHIN_S)


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> EmulatedManager:
    return EmulatedManager(folder=tmp_path_factory.mktemp("engines"), faults=True)


def running(manager: EmulatedManager, name: str, settings: dict[str, Any]) -> Iterator[Client]:
    engine = manager.start(Order(f"{name}#1", name, settings=settings))
    try:
        yield Client(engine)
    finally:
        manager.stop(engine)


@pytest.fixture(scope="session")
def quick(manager: EmulatedManager) -> Iterator[Client]:
    """A language model that takes no time."""
    yield from running(manager, "org/quick", {**AT_ONCE, "max_model_len": 1000})


@pytest.fixture(scope="module")
def steady(manager: EmulatedManager) -> Iterator[Client]:
    """A language model at ten milliseconds a token."""
    yield from running(manager, "steady", STEADY)


@pytest.fixture(scope="session")
def vision(manager: EmulatedManager) -> Iterator[Client]:
    """A model that answers tensors."""
    yield from running(manager, "vision", INFER)
