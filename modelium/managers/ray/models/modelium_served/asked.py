"""What a request for a completion or a chat asks for, in OpenAI's words."""

import math
from dataclasses import dataclass, field
from typing import Any

COMPLETION_TOKENS = 16
"""OpenAI's own default for /v1/completions."""
_HEEDED = {
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "repetition_penalty", "stop", "ignore_eos", "stream", "stream_options",
}  # fmt: skip
_HARMLESS = {
    "user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key",
    "prompt_cache_retention", "prediction", "parallel_tool_calls",
}  # fmt: skip
"""Who asks, and how it is kept, billed or made quicker: the answer is the same without them."""
_NOTHING = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,),
    "suffix": ("",), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "logit_bias": ({},), "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0),
    "modalities": (["text"],), "reasoning_effort": ("none",), "min_p": (0, 0.0),
    "min_tokens": (0,), "skip_special_tokens": (True,),
}  # fmt: skip
"""Values that ask for nothing of what this engine does not know; null does so everywhere."""


class RefusedError(Exception):
    """A request that cannot be served as it is; the message is for the client."""

    def __init__(self, why: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(why)
        self.param, self.status = param, status


@dataclass
class Asked:
    """One request."""

    prompt: str | list[int] | list[dict[str, Any]]
    """A text, tokens, or a chat's messages."""
    chat: bool
    most: int | None
    """Tokens at most; None: as many as the context has room for."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stops: list[str] = field(default_factory=list)
    ignore_end: bool = False
    stream: bool = False
    usage: bool = False
    """A stream ends with the numbers of tokens."""


def read(body: Any, chat: bool) -> Asked:
    """Read a request's body. Raises RefusedError."""
    if not isinstance(body, dict):
        raise RefusedError("the body must be a JSON object")
    for name, value in body.items():
        if not (name in _HEEDED or name in _HARMLESS or _asks_nothing(name, value, body)):
            raise RefusedError(f"{name} is not known to this engine: leave it out", name)
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise RefusedError("stop must be a text or a list of texts", "stop")
    options = body.get("stream_options") or {}
    most = body.get("max_completion_tokens") if chat else None
    most = body.get("max_tokens") if most is None else most
    return Asked(
        prompt=_messages(body) if chat else _prompt(body.get("prompt")),
        chat=chat,
        most=_whole("max_tokens", most, None if chat else COMPLETION_TOKENS, 1),
        temperature=_number(body, "temperature", 1.0, 0.0, 100.0),
        top_p=_number(body, "top_p", 1.0, 1e-6, 1.0),
        top_k=max(0, _whole("top_k", body.get("top_k"), 0, -1) or 0),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 1e-3, 100.0),
        stops=stops,
        ignore_end=bool(body.get("ignore_eos", False)),
        stream=bool(body.get("stream", False)),
        usage=isinstance(options, dict) and bool(options.get("include_usage", False)),
    )


def _asks_nothing(name: str, value: Any, body: dict[str, Any]) -> bool:
    if value is None or (name == "seed" and body.get("temperature") == 0):
        return True
    return any(type(value) is type(one) and value == one for one in _NOTHING.get(name, ()))


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return prompt
    raise RefusedError("prompt must be one text, or one list of tokens", "prompt")


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages must be a list with at least one message", "messages")
    return [_message(one, at) for at, one in enumerate(messages)]


def _message(one: Any, at: int) -> dict[str, Any]:
    if not isinstance(one, dict) or not isinstance(one.get("role"), str):
        raise RefusedError(f"messages[{at}] needs a role", "messages")
    content = one.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            raise RefusedError(f"messages[{at}]: only parts of text are known here", "messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RefusedError(f"messages[{at}] needs a content of text", "messages")
    return {**one, "content": content}


def _whole(name: str, value: Any, default: int | None, least: int) -> int | None:
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise RefusedError(f"{name} is {value!r:.40}, expected a whole number from {least}", name)
    return value


def _number(body: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not low <= value <= high:
        raise RefusedError(f"{name} is {value!r:.40}, expected {low:g} to {high:g}", name)
    return float(value)
