"""Good and bad input at every endpoint: the answer is one that the OpenAPI document announces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from modelium.gateway.openapi import document
from modelium.testing.scenarios import model
from tests.gateway.site import TENSORS, Site, site
from tests.live.harness import INSTANT, QUIET_S
from tests.live.running import until

load_all_checks()
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES = ["a", "org/b", "unknown"]
ENDLESS = {"/events"}


def _can_be_wrong(operation: dict[str, Any]) -> bool:
    """There is more to say than a model's name."""
    parameters = operation.get("parameters", [])
    return "requestBody" in operation or any(p["in"] != "path" for p in parameters)


SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [
    (path, method.upper())
    for path, item in document()["paths"].items()
    for method in item
    if path not in ENDLESS
]
CASES = [
    (path, method, mode)
    for path, method in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or _can_be_wrong(document()["paths"][path][method.lower()])
]
KINDS = {"language": INSTANT, "tensors": TENSORS}


class Background:
    """A site on a loop of its own, so that clients may block."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.site: Site
        self._up, self._stop = threading.Event(), asyncio.Event()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(folder, kind))

    def _run(self, folder: Path, kind: str) -> None:
        async def serve() -> None:
            models = [model("a", 20), model("org/b", 20)]
            async with site(folder, models, settings=KINDS[kind]) as self.site:
                self._up.set()
                await self._stop.wait()

        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(serve())
        finally:
            self._up.set()  # or never

    def __enter__(self) -> Background:
        self._thread.start()
        self._up.wait()
        assert self._loop.is_running(), "it did not come up"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def settle(self) -> None:
        """Wait until nobody is served or waits: who has left may not have been seen off yet."""
        dispatcher = self.site.house.cluster.dispatcher
        there = self.site.until(lambda: not (dispatcher.seats or [*dispatcher.queue.models()]))
        asyncio.run_coroutine_threadsafe(there, self._loop).result()


@contextmanager
def background(folder: Path, kind: str) -> Iterator[Background]:
    with Background(folder, kind) as there:
        yield there


@pytest.fixture(scope="module", params=KINDS)
def there(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    before = psutil.Process().num_fds()
    with background(tmp_path_factory.mktemp("contract"), request.param) as server:
        yield server
        server.settle()
        until(lambda: psutil.Process().num_fds() < before + 100)


@pytest.mark.parametrize(("path", "method", "mode"), CASES, ids=lambda word: str(word).strip("/"))
def test_answers_are_as_announced(
    there: Background, path: str, method: str, mode: GenerationMode
) -> None:
    strategy = SCHEMA[path][method].as_strategy(generation_mode=mode)

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(case=strategy, name=st.sampled_from(NAMES), swap=st.booleans())
    def check(case: Any, name: str, swap: bool) -> None:
        if "{model}" in path and swap:
            case.path_parameters["model"] = quote(name)
        if isinstance(case.body, dict) and "model" in case.body and swap:
            case.body["model"] = name
        if method == "DELETE" and swap:
            case.path_parameters["model"] = "unknown"
        answer = case.call(base_url=there.site.url, timeout=QUIET_S)
        assert answer.status_code != 500
        case.validate_response(answer, checks=CHECKS)

    check()


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bytes_that_are_hardly_http_end_in_an_answer_or_a_closed_connection(
    there: Background, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from([p for p, _ in OPERATIONS])).replace("{model}", "a")
    method = data.draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "BREW"]))
    odd = data.draw(st.binary(max_size=30))
    headers = data.draw(
        st.lists(
            st.sampled_from([
                b"Content-Length: 3", b"Content-Length: -1", b"Content-Encoding: gzip",
                b"Transfer-Encoding: chunked", b"X-Organization: \xff\xfe", b"X-Priority: \xb2",
                b"X-Session: \xed\xa0\x80", b"X-Slo-Class: \x7f", b"X-Max-Wait: nan",
                b"Expect: 100-continue", b"Origin: \xff", b"Authorization: Bearer \xff",
                b"Content-Type: nonsense", b"Inference-Header-Content-Length: 99",
                b"X-Request-Id: \xff", b"Host: [::", b"Host: \xff",
            ]),
            max_size=4,
        )
    )  # fmt: skip
    target = path.encode() + data.draw(st.sampled_from([b"", b"?limit=%ff", b"/%00", b"/%ff", odd]))
    head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method.encode(), target, b"\r\n".join(headers))
    answer = asyncio.run(send(there.site.url, head + odd))
    assert not answer.startswith(b"HTTP/1.1 500")


async def send(url: str, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(QUIET_S):
            writer.write(sent)
            writer.write_eof()
            return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()
