"""Streams of engines, cut anywhere, are passed on whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.gateway.engines import BrokenError
from modelium.gateway.openai import sse_parser as module
from modelium.gateway.openai.sse_parser import Pieces

DONE = b"data: [DONE]\n\n"


def event(said: object, *, end: bytes = b"\n\n", space: bool = False) -> bytes:
    separators = (", ", ": ") if space else (",", ":")
    return b"data: " + json.dumps(said, separators=separators).encode() + end


def word(text: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, **more}]}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

said = st.one_of(
    st.text(max_size=20).map(word),
    st.just(ROLE),
    st.just({"choices": [{"delta": {"content": 'a "choices":[] trap'}}]}),
)
ends = st.sampled_from([b"\n\n", b"\r\n\r\n"])


@given(st.lists(said, max_size=12), ends, st.booleans(), st.booleans(), st.data())
def test_cut_anywhere_the_same_events_come_out(
    saids: list[object], end: bytes, space: bool, hide: bool, data: st.DataObject
) -> None:
    whole = [event(one, end=end, space=space) for one in saids]
    usage = event(USAGE, end=end, space=space)
    raw = b"".join([*whole, usage, DONE])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces, out = Pieces(hide_usage=hide), []
    for begin, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        if part := raw[begin:stop]:
            out.append(pieces.feed(part))
    assert b"".join(out) == b"".join([*whole, *([] if hide else [usage]), DONE])
    assert all(part.endswith((b"\n\n", b"\r\n\r\n")) for part in out if part)
    assert pieces.complete
    assert pieces.tokens == (7, 3)


def test_what_precedes_the_first_content_is_held_until_then() -> None:
    pieces = Pieces(hide_usage=True)
    assert pieces.feed(b": a comment\n\n" + event(ROLE)) == b""
    assert not pieces.begun
    first = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
    assert pieces.feed(event(first)) == b": a comment\n\n" + event(ROLE) + event(first)
    assert pieces.begun


@pytest.mark.parametrize(
    "said",
    [
        word("", finish_reason="length"),
        {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"something": "else"},
    ],
)
def test_an_answer_begins_with_anything_that_says_more_than_a_role(said: object) -> None:
    pieces = Pieces(hide_usage=True)
    assert pieces.feed(event(said)) == event(said)
    assert pieces.begun


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"error": {"message": "died", "type": "InternalServerError", "code": 500}}, 500),
        ({"error": {"message": "died", "type": "server_error"}}, 500),
        ({"error": "died"}, 500),
        ({"object": "error", "message": "died", "code": 500}, 500),
        ({"object": "error", "message": "no", "type": "BadRequestError", "code": 400}, 400),
        ({"error": {"message": "no", "type": "BadRequestError", "code": 400}}, 400),
        ({"error": {"message": "no", "type": "invalid_request_error", "code": "too_long"}}, 400),
        ({"error": {"message": "no", "code": "422"}}, 422),
        (word("", finish_reason="abort"), 500),
        (word("", finish_reason="error"), 500),
    ],
)
@pytest.mark.parametrize("head", [b"", b"event: error\n", b": a comment\n\n"])
def test_a_failure_within_a_stream_is_no_content(told: object, status: int, head: bytes) -> None:
    pieces = Pieces(hide_usage=True)
    raw = event(word("one")) + head + event(told) + event(word("two")) + DONE
    assert pieces.feed(raw).startswith(event(word("one")))
    assert pieces.failure is not None
    assert pieces.failure.status == status
    assert not pieces.complete
    unbegun = Pieces(hide_usage=True)
    assert unbegun.feed(event(ROLE) + head + event(told) + DONE) == b""
    assert not unbegun.begun
    assert unbegun.failure is not None


@pytest.mark.parametrize(
    "said",
    [
        word('{"error": "none"}'),
        word("error"),
        word("abort"),
        {**word("x"), "error": None},
        {"choices": [{"delta": {"content": '"error" "abort"'}, "finish_reason": "stop"}]},
    ],
)
def test_what_speaks_of_errors_is_none(said: object) -> None:
    pieces = Pieces(hide_usage=True)
    assert pieces.feed(event(said) + DONE) == event(said) + DONE
    assert pieces.failure is None
    assert pieces.complete


def test_a_stream_without_its_end_is_not_complete() -> None:
    pieces = Pieces(hide_usage=True)
    pieces.feed(event(word("a")) + event(word("b")) + DONE[:-1])
    assert not pieces.complete
    pieces.feed(b"\n")
    assert pieces.complete


def test_tokens_are_counted_by_events_as_long_as_the_engine_has_not_told() -> None:
    pieces = Pieces(hide_usage=True)
    for text in "abc":
        pieces.feed(event(word(text)))
    assert pieces.tokens == (0, 3)


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENT_BYTES", 1000)
    pieces = Pieces(hide_usage=True)
    assert [pieces.feed(b"x" * 100) for _ in range(10)] == [b""] * 10
    with pytest.raises(BrokenError, match="more than 1000 bytes"):
        pieces.feed(b"x")
