"""OpenAI's API of an emulated engine, asked over HTTP."""

from __future__ import annotations

import base64
import math
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.managers import EmulatedManager
from modelium.managers.engine import Order
from tests.managers.emulation.conftest import AT_ONCE, Client

CHAT = [{"role": "user", "content": "tell me a story"}]


def test_a_completion_has_vllms_shape(quick: Client) -> None:
    status, body = quick.post("/v1/completions", model="org/quick", prompt="a b c", max_tokens=5)
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["model"] == "org/quick"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert len(choice["text"].split()) == 5
    assert {**choice, "text": ""} == {
        "index": 0, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None,
    }  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_chat_completion_has_vllms_shape(quick: Client) -> None:
    status, body = quick.post("/v1/chat/completions", model="org/quick", messages=CHAT)
    assert status == 200
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 64
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 4


def test_a_stream_says_what_the_whole_answer_says(quick: Client) -> None:
    asked: dict[str, Any] = {"model": "org/quick", "prompt": "once upon", "max_tokens": 40}
    _, whole = quick.post("/v1/completions", **asked)
    events = quick.events("/v1/completions", **asked, stream_options={"include_usage": True})
    *tokens, last = events
    assert "".join(e["choices"][0]["text"] for e in tokens) == whole["choices"][0]["text"]
    assert len(tokens) == 40
    reasons = [e["choices"][0]["finish_reason"] for e in tokens]
    assert reasons == [None] * 39 + ["length"]
    assert all("usage" not in e for e in tokens)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len({e["id"] for e in events}) == 1


def test_a_chat_stream_begins_with_the_role(quick: Client) -> None:
    asked: dict[str, Any] = {"model": "org/quick", "messages": CHAT, "max_completion_tokens": 6}
    _, whole = quick.post("/v1/chat/completions", **asked)
    first, *tokens = quick.events("/v1/chat/completions", **asked)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(e["choices"][0]["delta"]["content"] for e in tokens)
    assert text == whole["choices"][0]["message"]["content"]
    assert tokens[-1]["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in e for e in tokens)


def test_several_prompts_make_several_choices(quick: Client) -> None:
    prompts = ["one", [1, 2, 3], "two words"]
    _, body = quick.post("/v1/completions", model="org/quick", prompt=prompts, max_tokens=3)
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert len({c["text"] for c in body["choices"]}) == 3
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}
    events = quick.events("/v1/completions", model="org/quick", prompt=prompts, max_tokens=3)
    for choice in body["choices"]:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]


def test_text_belongs_to_prompt_and_seed(quick: Client, manager: EmulatedManager) -> None:
    def text(client: Client, model: str, prompt: str, **more: Any) -> str:
        _, body = client.post("/v1/completions", model=model, prompt=prompt, **more)
        return str(body["choices"][0]["text"])

    first = text(quick, "org/quick", "a")
    assert first == text(quick, "org/quick", "a")
    assert first != text(quick, "org/quick", "b")
    assert first != text(quick, "org/quick", "a", seed=1)
    twin = manager.start(Order("twin#1", "twin", settings=AT_ONCE))
    assert text(Client(twin), "twin", "a") == first
    manager.stop(twin)


def test_the_clients_request_id_is_kept(quick: Client) -> None:
    body = {"model": "org/quick", "prompt": "a"}
    _, answer = quick.ask("POST", "/v1/completions", body, **{"X-Request-Id": r"me\u0000-7"})
    assert answer["id"] == r"cmpl-me\u0000-7"
    _, text = quick.ask("POST", "/v1/completions", {**body, "stream": True, "max_tokens": 1},
                        **{"X-Request-Id": r"me\u0000-7"})  # fmt: skip
    assert r"cmpl-me\\u0000-7" in text


def test_embeddings_lie_on_the_unit_sphere(quick: Client) -> None:
    asked = {"model": "org/quick", "input": ["a b", "c", "a b"]}
    _, body = quick.post("/v1/embeddings", **asked)
    vectors = [d["embedding"] for d in body["data"]]
    assert [math.hypot(*v) for v in vectors] == pytest.approx([1.0] * 3)
    assert vectors[0] == vectors[2] != vectors[1]
    assert body["usage"]["prompt_tokens"] == 5
    _, packed = quick.post("/v1/embeddings", **asked, encoding_format="base64")
    for vector, item in zip(vectors, packed["data"], strict=True):
        unpacked = array("f", base64.b64decode(item["embedding"]))
        assert list(unpacked) == pytest.approx(vector, rel=1e-6)


def test_models_are_listed(quick: Client) -> None:
    _, body = quick.ask("GET", "/v1/models")
    assert [(m["id"], m["max_model_len"]) for m in body["data"]] == [("org/quick", 1000)]


LENGTH = r"maximum context length is 1000 tokens"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("completions", {"model": "quick", "prompt": "a"}, 404, "The model `quick` does not exist"),
        ("completions", {"prompt": "a", "max_tokens": 0}, 400, "at least 1, got 0"),
        ("completions", {"prompt": "a", "max_tokens": "9"}, 400, "whole number, got '9'"),
        ("completions", {"prompt": "a", "max_tokens": 1000}, 400, LENGTH),
        ("completions", {"prompt": "a " * 1000}, 400, LENGTH),
        ("completions", {}, 400, "prompt has to be text"),
        ("completions", {"prompt": []}, 400, "prompt has to be text"),
        ("completions", {"prompt": ["a", None]}, 400, "prompt has to be text"),
        ("completions", {"prompt": "a", "n": 2}, 400, "one choice for each prompt"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream="),
        ("completions", {"prompt": "a", "stream": True, "stream_options": 7}, 400, "an object"),
        ("chat/completions", {}, 400, "messages has to be a list"),
        ("chat/completions", {"messages": [{"content": "a"}]}, 400, "with a role"),
        ("chat/completions", {"messages": [{"role": "user", "content": 1}]}, 400, "text or a list"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, 400, "not float or base64"),
        ("embeddings", {"input": "a " * 1001}, 400, LENGTH),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    quick: Client, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    got, answer = quick.post(f"/v1/{path}", **body)
    assert got == status
    assert says in answer["error"]["message"]
    assert answer["error"]["code"] == status


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 400),
    ],
)
def test_bodies_that_are_not_json_objects_are_refused(
    quick: Client, content: bytes, kind: str, status: int
) -> None:
    got, answer = quick.ask("POST", "/v1/completions", content, **{"content-type": kind})
    assert (got, answer["error"]["code"]) == (status, status)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v2/models/org/quick/infer", 404),
    ],
)
def test_paths_and_methods(quick: Client, method: str, path: str, status: int) -> None:
    assert quick.ask(method, path)[0] == status


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from([
    "model", "prompt", "messages", "input", "max_tokens", "max_completion_tokens", "stream", "n",
    "stream_options", "seed", "encoding_format", "role", "content",
])  # fmt: skip
PATHS = st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])


@settings(max_examples=300)
@given(PATHS, st.dictionaries(FIELDS, JSON), st.booleans())
def test_no_body_breaks_it(quick: Client, path: str, body: dict[str, Any], valid: bool) -> None:
    if valid:
        body = {"prompt": "a", "input": "a", "messages": CHAT, **body}
    status, _ = quick.post(path, **body)
    assert status in (200, 400, 404)
    assert quick.metric("vllm:num_requests_running") == 0
