"""What requests for completions and chats ask for, and how wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.ray.models.modelium_served.asked import (
    COMPLETION_TOKENS,
    RefusedError,
    read,
)

USER = {"role": "user", "content": "Hello"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = (
    "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
    "repetition_penalty", "stop", "stream", "stream_options", "n", "logprobs", "tools",
)  # fmt: skip


@given(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON), st.booleans())
def test_whatever_is_sent_is_read_or_refused(body: Any, chat: bool) -> None:
    try:
        asked = read(body, chat)
    except RefusedError:
        return
    assert asked.most is None or asked.most >= 1
    assert 0 <= asked.temperature <= 100
    assert 0 < asked.top_p <= 1
    assert asked.top_k >= 0


def test_what_is_not_said_is_as_openai_has_it() -> None:
    asked = read({"prompt": "a"}, chat=False)
    assert (asked.most, asked.temperature, asked.top_p, asked.top_k) == (COMPLETION_TOKENS, 1, 1, 0)
    assert not asked.stream | asked.usage | asked.ignore_end
    assert read({"messages": [USER]}, chat=True).most is None, "as many as there is room for"


@pytest.mark.parametrize(
    ("prompt", "read_as"), [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])]
)
def test_a_prompt_is_a_text_or_tokens(prompt: Any, read_as: Any) -> None:
    assert read({"prompt": prompt}, chat=False).prompt == read_as


def test_parts_of_text_are_put_together_and_other_fields_kept() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": parts, "name": "n"}
    assert read({"messages": [message]}, chat=True).prompt == [
        {"role": "user", "content": "ab", "name": "n"}
    ]


def test_the_newer_name_of_the_limit_wins_in_chats_only() -> None:
    both = {"max_completion_tokens": 3, "max_tokens": 5}
    assert read({"messages": [USER], **both}, chat=True).most == 3
    assert read({"prompt": "a", **both}, chat=False).most == 5


@pytest.mark.parametrize(
    ("body", "chat", "param", "why"),
    [
        ([], False, None, "must be a JSON object"),
        ({}, False, "prompt", "one text"),
        ({"prompt": ["a", "b"]}, False, "prompt", "one text"),
        ({"prompt": [True]}, False, "prompt", "one list of tokens"),
        ({"prompt": "a", "max_tokens": 0}, False, "max_tokens", "is 0, expected a whole"),
        ({"prompt": "a", "max_tokens": True}, False, "max_tokens", "is True, expected"),
        ({"prompt": "a", "temperature": -1}, False, "temperature", "is -1, expected 0 to 100"),
        ({"prompt": "a", "temperature": float("nan")}, False, "temperature", "is nan"),
        ({"prompt": "a", "top_p": 0}, False, "top_p", "is 0"),
        ({"prompt": "a", "stop": [1]}, False, "stop", "a text or a list of texts"),
        ({"prompt": "a", "logprobs": 3}, False, "logprobs", "not known to this engine"),
        ({"prompt": "a", "presence_penalty": 1}, False, "presence_penalty", "not known"),
        ({"prompt": "a", "seed": 7}, False, "seed", "not known to this engine"),
        ({"prompt": "a", "min_tokens": 3}, False, "min_tokens", "not known to this engine"),
        ({"messages": [USER], "tool_choice": "required"}, True, "tool_choice", "not known"),
        ({"messages": []}, True, "messages", "at least one"),
        ({"messages": [{"content": "a"}]}, True, "messages", r"messages\[0\] needs a role"),
        ({"messages": [USER, {"role": "user"}]}, True, "messages", r"messages\[1\] needs a con"),
        ({"messages": [{**USER, "content": [{"image_url": "x"}]}]}, True, "messages", "parts of"),
    ],
)
def test_what_is_wrong_is_named(body: Any, chat: bool, param: str | None, why: str) -> None:
    with pytest.raises(RefusedError, match=why) as caught:
        read(body, chat)
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_fields_that_ask_for_nothing_are_no_reason_to_refuse() -> None:
    nothing = {
        "n": 1, "echo": False, "logprobs": None, "tools": [], "suffix": None, "user": "u",
        "response_format": {"type": "text"}, "presence_penalty": 0, "seed": 7, "temperature": 0,
    }  # fmt: skip
    assert read({"prompt": "a", **nothing}, chat=False).prompt == "a"
