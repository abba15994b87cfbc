"""Fields of OpenAI's calls that a model behind KServe's protocol does not support.

Such a model takes a text, a number of tokens and a temperature. What else a request asks for would
be ignored without a word, so it is refused, unless the value asks for nothing.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from modelium.gateway.errors import ApiError

SUPPORTED = frozenset({
    "model", "prompt", "messages", "input", "encoding_format", "max_tokens",
    "max_completion_tokens", "temperature", "stream", "stream_options",
})  # fmt: skip
HARMLESS = frozenset({
    "user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key",
    "prompt_cache_retention", "prediction", "parallel_tool_calls",
})  # fmt: skip
"""Who asks, and how it is kept, billed or made quicker: the answer is the same without them."""
NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),  # 0 asks for those of the tokens that were chosen
    "top_logprobs": (0,),
    "suffix": ("",),
    "stop": ("", []),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "top_p": (1, 1.0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}
"""Values that ask for nothing; null does so for every field."""
MESSAGE = ("role", "content", "name")


def check_fields(model: str, body: Mapping[str, Any]) -> None:
    """Raise ApiError (422) for the first field that would be ignored, though it means something."""
    for name, value in body.items():
        if name in SUPPORTED or name in HARMLESS or value is None:
            continue
        if any(type(value) is type(one) and value == one for one in NOTHING.get(name, ())):
            continue
        if name == "seed" and body.get("temperature") == 0:
            continue  # nothing is drawn
        raise _ignored(model, name, value, name)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        for name, value in message.items() if isinstance(message, dict) else ():
            if name not in MESSAGE and value not in (None, []):
                raise _ignored(model, f"{name} of a message", value, "messages")


def _ignored(model: str, what: str, value: Any, param: str) -> ApiError:
    why = f"{model} does not support {what} ({reprlib.repr(value)}): leave it out"
    return ApiError(422, why, param=param)
