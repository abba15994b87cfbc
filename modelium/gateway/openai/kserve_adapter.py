"""Text models behind KServe's protocol, for clients that speak OpenAI's.

Such a model takes the tensors text_input, max_tokens and temperature and gives text_output, and
prompt_tokens and output_tokens if it counts them; what is not counted is not told to clients.
"""

from __future__ import annotations

import time
from typing import Any

from modelium.gateway.errors import ApiError, dumped
from modelium.gateway.openai.embedding import EMBEDDINGS, embedding_answer, embedding_tensors
from modelium.gateway.openai.fields import check_fields
from modelium.gateway.request_parsing import Ask, whole, wrong

DONE = b"data: [DONE]\n\n"
MAX_TOKENS = 16
"""OpenAI's default for completions."""
CHAT = "/v1/chat/completions"


def kserve_payload(ask: Ask) -> bytes:
    """A completion, a chat or embeddings as tensors. Raises ApiError (400, 422)."""
    check_fields(ask.request.model, ask.body)
    tensors = embedding_tensors(ask) if ask.path == EMBEDDINGS else _text_tensors(ask)
    return dumped({"id": ask.request.id, "inputs": tensors})


def output_of(ask: Ask) -> str:
    """The tensor that holds the answer."""
    return "embedding" if ask.path == EMBEDDINGS else "text_output"


def _text_tensors(ask: Ask) -> list[dict[str, Any]]:
    warmth = ask.body.get("temperature")
    if warmth is not None and (isinstance(warmth, bool) or not isinstance(warmth, int | float)):
        raise ApiError(400, "temperature has to be a number", param="temperature")
    return [
        _tensor("text_input", "BYTES", prompt_of(ask)),
        _tensor("max_tokens", "INT32", _most(ask)),
        _tensor("temperature", "FP32", 1.0 if warmth is None else warmth),
    ]


def prompt_of(ask: Ask) -> str:
    """The one text that a simple engine is to go on with. Raises ApiError (400, 422)."""
    if ask.path == CHAT:
        return _chat_text(ask)
    prompt = ask.body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ApiError(422, f"{ask.request.model} takes one text as its prompt", param="prompt")
    return prompt


def _chat_text(ask: Ask) -> str:
    """A conversation as plain text, for engines without a chat template."""
    messages = ask.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages is missing, expected a list of messages", param="messages")
    lines = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            why = f"{ask.request.model} takes messages of text only"
            raise ApiError(422, why, param="messages")
        lines.append(f"{message.get('role', 'user')}: {content}")
    return "\n".join([*lines, "assistant:"])


def openai_answer(ask: Ask, given: Any) -> dict[str, Any]:
    """A model's tensors as OpenAI's answer. Raises ApiError (422) for any other model's."""
    if ask.path == EMBEDDINGS:
        return embedding_answer(ask, given)
    try:
        found = {tensor["name"]: tensor["data"][0] for tensor in given["outputs"]}
        text = str(found["text_output"])
    except (KeyError, TypeError, IndexError):
        why = f"{ask.request.model} does not answer with text: use /v2/models/.../infer or /predict"
        raise ApiError(422, why, param="model") from None
    chat, counts = ask.path == CHAT, [found.get("prompt_tokens"), found.get("output_tokens")]
    prompt, output = (count if isinstance(count, int) else None for count in counts)
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "length" if output is not None and output >= _most(ask) else "stop",
        "logprobs": None,
    }
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    answer: dict[str, Any] = {
        "id": ask.request.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": ask.request.model,
        "choices": [choice],
    }
    if prompt is not None and output is not None:
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
    return answer


def as_stream(ask: Ask, answer: dict[str, Any]) -> bytes:
    """A whole answer as a stream of one piece."""
    choice = dict(answer["choices"][0])
    if "message" in choice:
        choice["delta"] = choice.pop("message")
    head = {key: answer[key] for key in ("id", "created", "model")}
    head["object"] = answer["object"].replace("chat.completion", "chat.completion.chunk")
    pieces = [{**head, "choices": [choice]}]
    if ask.wants_usage and "usage" in answer:
        pieces.append({**head, "choices": [], "usage": answer["usage"]})
    return b"".join(b"data: " + dumped(piece) + b"\n\n" for piece in pieces) + DONE


def _most(ask: Ask) -> int:
    """Tokens at most. Raises ApiError (400)."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (most := whole(ask.body, name)) is not None:
            if not most:
                raise wrong(name, most, "a whole number, 1 or more")
            return most
    return MAX_TOKENS


def _tensor(name: str, kind: str, value: Any) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": [1], "data": [value]}
