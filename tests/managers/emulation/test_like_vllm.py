"""The emulation and a real vLLM, asked the same: what they accept, refuse, and how they say it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from modelium.managers import EmulatedManager
from modelium.managers.engine import Order
from tests.live import tiny
from tests.managers.emulation.conftest import AT_ONCE, Client
from tests.managers.vllm_house import manager as vllm_manager
from tests.managers.vllm_house import needs_vllm, order

pytestmark = [pytest.mark.engines, needs_vllm()]

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, manager: EmulatedManager
) -> Iterator[tuple[Client, Client]]:
    """A real one and ours, with the same model name and length."""
    folder = tmp_path_factory.mktemp("like-vllm")
    real_manager = vllm_manager(folder / "logs")
    real = real_manager.start(order("m", tiny.llama(folder / "m")))
    try:
        ours = manager.start(Order("like#1", "m", settings={**AT_ONCE, "max_model_len": 2048}))
        yield Client(real), Client(ours)
        manager.stop(ours)
    finally:
        real_manager.stop(real)


def keys(value: Any) -> Any:
    """The names in an answer, nested."""
    if isinstance(value, dict):
        return {name: keys(inner) for name, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


def within(ours: Any, theirs: Any, where: str = "") -> None:
    """All that we say, vLLM says too; where both have an object, that holds inside."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert set(ours) <= set(theirs), where
        for name, inner in ours.items():
            within(inner, theirs[name], f"{where}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        within(ours[0], theirs[0], where)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"model": "q", "prompt": "a"}),
        ("completions", {"model": "m", "prompt": "a", "max_tokens": 0}),
        ("completions", {"model": "m", "prompt": "a", "max_tokens": "x"}),
        ("completions", {"model": "m", "prompt": "a", "max_tokens": 100_000}),
        ("completions", {"model": "m", "prompt": [1] * 9000}),
        ("completions", {"model": "m"}),
        ("completions", {"model": "m", "prompt": []}),
        ("completions", {"model": "m", "prompt": ["a", None]}),
        ("completions", {"model": "m", "prompt": "a", "stream_options": {"include_usage": True}}),
        ("completions", {"model": "m", "prompt": "a", "stream": True, "stream_options": 7}),
        ("chat/completions", {"model": "m"}),
        ("chat/completions", {"model": "m", "messages": []}),
        ("chat/completions", {"model": "m", "messages": [{"content": "a"}]}),
        ("chat/completions", {"model": "m", "messages": [{"role": "user", "content": 1}]}),
        ("completions", b"{"),
        ("completions", b"[]"),
        ("completions", b"text"),
    ],
)
def test_errors_have_the_same_status_and_type(
    both: tuple[Client, Client], path: str, body: Any
) -> None:
    kind = {"content-type": "text/plain"} if body == b"text" else {}
    real, ours = (client.ask("POST", f"/v1/{path}", body, **kind) for client in both)
    assert ours[0] == real[0]
    assert ours[1]["error"]["type"] == real[1]["error"]["type"]
    assert ours[1]["error"]["code"] == real[1]["error"]["code"]
    assert keys(ours[1]) == keys(real[1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "a", "max_tokens": 3}),
        ("completions", {"model": "m", "prompt": ["a", "b"], "max_tokens": 3}),
        ("chat/completions", {"model": "m", "messages": HI, "max_tokens": 3}),
    ],
)
def test_answers_have_fields_that_vllms_have(
    both: tuple[Client, Client], path: str, body: Any
) -> None:
    real, ours = (client.ask("POST", f"/v1/{path}", body) for client in both)
    assert ours[0] == real[0] == 200
    within(keys(ours[1]), keys(real[1]))
    for name in ("object", "model"):
        assert ours[1][name] == real[1][name]
    assert len(ours[1]["choices"]) == len(real[1]["choices"])
    assert ours[1]["choices"][0]["finish_reason"] == real[1]["choices"][0]["finish_reason"]
    made = [answer["usage"]["completion_tokens"] for _, answer in (real, ours)]
    assert made[0] == made[1]


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_streams_have_the_same_events(both: tuple[Client, Client], chat: bool, usage: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body: dict[str, Any] = {"messages": HI} if chat else {"prompt": "a"}
    body |= {"model": "m", "max_tokens": 2, "ignore_eos": True}
    if usage:
        body["stream_options"] = {"include_usage": True}
    real, ours = (client.events(path, **body) for client in both)
    # A real engine may send two tokens that came together in one event.
    assert len(real) <= len(ours) <= len(real) + 1
    for mine, theirs in ((ours[0], real[0]), (ours[-1], real[-1])):
        within(keys(mine), keys(theirs))
        assert mine["object"] == theirs["object"]
    assert ("usage" in ours[-1]) == ("usage" in real[-1]) == usage
    last = -2 if usage else -1
    reasons = [events[last]["choices"][0]["finish_reason"] for events in (real, ours)]
    assert reasons == ["length", "length"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("GET", "/health"),
     ("GET", "/is_sleeping")],
)  # fmt: skip
def test_other_paths(both: tuple[Client, Client], method: str, path: str) -> None:
    real, ours = (client.ask(method, path) for client in both)
    assert ours == real


def test_metrics_have_names_and_labels_that_vllms_have(both: tuple[Client, Client]) -> None:
    def names(client: Client) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in client.ask("GET", "/metrics")[1].splitlines():
            if line.startswith("vllm:"):
                name, _, labels = line.rpartition(" ")[0].partition("{")
                pairs = labels.rstrip("}").split(",")
                found.setdefault(name, set()).update(pair.split("=")[0] for pair in pairs)
        return found

    real, ours = map(names, both)
    assert {name: real.get(name) for name in ours} == ours


def test_models_are_listed_with_fields_that_vllms_have(both: tuple[Client, Client]) -> None:
    real, ours = (client.ask("GET", "/v1/models")[1] for client in both)
    within(keys(ours), keys(real))
    assert json.dumps(ours["data"][0]["max_model_len"]) == "2048"
