"""Talking to engines: OpenAI's HTTP API as it is, KServe's protocol and plain JSON translated."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from modelium.errors import ModeliumError
from modelium.gateway.asking import Ask
from modelium.gateway.desk import Desk
from modelium.gateway.errors import ApiError
from modelium.managers.engine import Engine

JSON = {"Content-Type": "application/json"}
DONE = b"data: [DONE]\n\n"


class BrokenError(ModeliumError):
    """The engine did not answer, or broke while it did."""


@asynccontextmanager
async def called(
    desk: Desk, engine: Engine, path: str, payload: bytes, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The engine's answer, as it comes. Raises BrokenError where there is none."""
    try:
        async with desk.http.post(engine.url + path, data=payload, headers=headers) as answer:
            yield answer
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise BrokenError(f"{engine.instance}: {error or type(error).__name__}") from error


def openai_payload(ask: Ask, engine: Engine) -> bytes:
    """The client's body, with the engine's name for the model, and usage at a stream's end."""
    body = ask.body
    if body.get("model") != engine.name:
        body = {**body, "model": engine.name}
    if ask.stream and not ask.wants_usage:
        options = body.get("stream_options") or {}
        body = {**body, "stream_options": {**options, "include_usage": True}}
    return orjson.dumps(body)


def usage_of(body: Any) -> tuple[int, int]:
    """Prompt and output tokens that an answer says it took."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


# Text models behind KServe's protocol


def kserve_payload(ask: Ask) -> bytes:
    """A completion or a chat as the tensors of a text model. Raises ApiError (400, 422)."""
    body = ask.body
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    warmth = body.get("temperature")
    return orjson.dumps(
        {
            "inputs": [
                _tensor("text_input", "BYTES", prompt_of(ask)),
                _tensor("max_tokens", "INT32", most),
                _tensor("temperature", "FP32", 1.0 if warmth is None else warmth),
            ]
        }
    )


def prompt_of(ask: Ask) -> str:
    """The one text that a simple engine is to go on with."""
    if ask.path == "/v1/completions":
        prompt = ask.body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise ApiError(422, f"{ask.request.model} takes one text as its prompt", param="prompt")
        return prompt
    if ask.path == "/v1/chat/completions":
        return chat_text(ask)
    raise ApiError(422, f"{ask.request.model} does not serve {ask.path}", param="model")


def chat_text(ask: Ask) -> str:
    """A conversation as plain text, for engines without a chat template."""
    messages = ask.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages is missing, expected a list of messages", param="messages")
    lines = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise ApiError(
                422, f"{ask.request.model} takes messages of text only", param="messages"
            )
        lines.append(f"{message.get('role', 'user')}: {content}")
    return "\n".join([*lines, "assistant:"])


def kserve_answer(ask: Ask, given: Any) -> dict[str, Any]:
    """A text model's tensors as an OpenAI answer. Raises BrokenError for anything else."""
    try:
        found = {tensor["name"]: tensor["data"][0] for tensor in given["outputs"]}
        return openai_answer(
            ask,
            str(found["text_output"]),
            int(found.get("prompt_tokens", 0)),
            int(found.get("output_tokens", 0)),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BrokenError(f"an answer with no text_output: {error}") from None


def openai_answer(ask: Ask, text: str, prompt: int, output: int) -> dict[str, Any]:
    """A text as OpenAI's answer to a completion or a chat."""
    chat = ask.path.startswith("/v1/chat")
    most = ask.body.get("max_completion_tokens") or ask.body.get("max_tokens") or 16
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "length" if output >= most else "stop",
        "logprobs": None,
    }
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": ask.request.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": ask.request.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        },
    }


def as_stream(ask: Ask, answer: dict[str, Any]) -> bytes:
    """A whole answer as a stream of one piece, for engines that cannot stream."""
    choice = dict(answer["choices"][0])
    if "message" in choice:
        choice["delta"] = choice.pop("message")
    head = {key: answer[key] for key in ("id", "created", "model")}
    head["object"] = answer["object"].replace("chat.completion", "chat.completion.chunk")
    pieces = [{**head, "choices": [choice]}]
    if ask.wants_usage:
        pieces.append({**head, "choices": [], "usage": answer["usage"]})
    return b"".join(b"data: " + orjson.dumps(piece) + b"\n\n" for piece in pieces) + DONE


def _tensor(name: str, kind: str, value: Any) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": [1], "data": [value]}
