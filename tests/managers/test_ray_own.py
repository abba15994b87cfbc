"""A user's own class on a real Ray Serve: what it may answer, raise and be."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from modelium.managers.engine import Engine, StartError
from modelium.managers.ray.manager import RayManager
from tests.managers.ray_house import manager, needs_ray, post, processes_of

pytestmark = [pytest.mark.engines, needs_ray()]

SHAPES = """
import numpy as np
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse

class Shapes:
    def __call__(self, body):
        match body["give"]:
            case "nothing": return None
            case "array": return {"y": np.arange(3), "n": np.float32(1.5)}
            case "text": return PlainTextResponse("written", 201, {"X-Own": "1"})
            case "bytes": return Response(bytes(range(4)), media_type="image/x-own")
            case "pieces": return StreamingResponse(iter(["a", "b"]), media_type="text/plain")
            case "refusal": raise HTTPException(422, "x must be positive")
            case "busy": raise HTTPException(429, "later", headers={"Retry-After": "7"})
            case "down": raise HTTPException(503, "no licence")
            case "bug": return 1 // 0
            case "set": return {"no": {1, 2}}
            case "nan": return float("nan")
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayManager]:
    folder = tmp_path_factory.mktemp("ray")
    made = manager(folder)
    try:
        yield made
    finally:
        made.close()
        left = processes_of(folder)
        for one in left:
            one.kill()
        assert left == []


@pytest.fixture(scope="module")
def shapes(ray: RayManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "model.py").write_text(SHAPES)
    yield ray.load_model("shapes", folder)
    assert not ray.trouble(ray._loaded["shapes"]), "no answer of its own has hurt it"
    ray.unload_model("shapes")


def raw(engine: Engine, method: str, path: str, body: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and bytes of one request."""
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=400)
    try:
        connection.request(method, address.path + path, body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("give", "answer"), [("nothing", None), ("array", {"y": [0, 1, 2], "n": 1.5})]
)
def test_what_can_be_json_is_the_answer(shapes: Engine, give: str, answer: Any) -> None:
    assert post(shapes, "/", {"give": give}) == (200, answer)


@pytest.mark.parametrize(
    ("give", "status", "kind", "content"),
    [
        ("text", 201, "text/plain; charset=utf-8", b"written"),
        ("bytes", 200, "image/x-own", bytes(range(4))),
        ("pieces", 200, "text/plain; charset=utf-8", b"ab"),
    ],
)
def test_a_response_goes_out_as_it_is(
    shapes: Engine, give: str, status: int, kind: str, content: bytes
) -> None:
    got, headers, body = raw(shapes, "POST", "/", f'{{"give": "{give}"}}')
    assert (got, headers["content-type"], body) == (status, kind, content)
    assert headers.get("x-own") == ("1" if give == "text" else None)


@pytest.mark.parametrize(
    ("give", "status", "why"),
    [
        ("refusal", 422, "x must be positive"),
        ("busy", 429, "later"),
        ("down", 503, "no licence"),
        ("bug", 500, "ZeroDivisionError: integer division or modulo by zero"),
        ("set", 500, "the model's answer is no JSON: set cannot be written as JSON"),
        ("nan", 500, "the model's answer is no JSON: Out of range float values"),
    ],
)
def test_what_it_raises_has_its_own_status(
    shapes: Engine, give: str, status: int, why: str
) -> None:
    got, told = post(shapes, "/", {"give": give})
    assert (got, told["error"]["code"]) == (status, status)
    assert told["error"]["message"].startswith(why)
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert told["error"]["type"] == kind


def test_headers_of_a_refusal_go_with_it(shapes: Engine) -> None:
    assert raw(shapes, "POST", "/", '{"give": "busy"}')[1]["retry-after"] == "7"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "why"),
    [
        ("POST", "/", "{", 400, b"the body is no JSON"),
        ("POST", "/", '"x', 400, b"the body is no JSON"),
        ("GET", "/", "", 404, b"GET / is not served here, but POST /"),
        ("POST", "/more", "{}", 404, b"POST /more is not served here, but POST /"),
    ],
)
def test_only_json_posted_to_its_root_reaches_it(
    shapes: Engine, method: str, path: str, body: str, status: int, why: bytes
) -> None:
    got, _, told = raw(shapes, method, path, body)
    assert (got, why in told) == (status, True), told


@pytest.mark.parametrize(
    ("code", "settings", "why"),
    [
        ("class A:\n  def __call__(self, b): ...\nB = type('B', (A,), {})", {"class": ":C"},
         "has no class C"),
        ("class A:\n  def __call__(self, b): ...\nclass B(A):\n  def __call__(self, b): ...",
         {}, "it has A, B; name one"),
        ("class A: ...", {"class": "model:A"}, "A has no __call__"),
        ("import nothing_of_this_name", {}, "No module named 'nothing_of_this_name'"),
        ("", {"class": "json:JSONDecoder"}, "not from the model's folder"),
    ],
)  # fmt: skip
def test_a_class_that_cannot_serve_is_told_from_others(
    ray: RayManager, tmp_path: Path, code: str, settings: dict[str, str], why: str
) -> None:
    (tmp_path / "model.py").write_text(code)
    with pytest.raises(StartError) as caught:
        ray.load_model("odd", tmp_path, **settings)
    assert why in str(caught.value)


def test_a_class_for_ray_serve_is_served_as_it_is(ray: RayManager, tmp_path: Path) -> None:
    code = (
        "from ray import serve\n@serve.deployment\nclass Echo:\n"
        "  async def __call__(self, body):\n    return body\n"
    )
    (tmp_path / "mine.py").write_text(code)
    engine = ray.load_model("echo", tmp_path, **{"class": "mine:Echo"})
    assert post(engine, "/", [1, {"a": None}]) == (200, [1, {"a": None}])
    ray.unload_model("echo", graceful=False)
