"""OpenAI's API over a `Batcher`: what vLLM accepts, refuses and answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from modelium.managers.emulated.server.answers import (
    Answer,
    BadRequest,
    Choice,
    WrongShape,
    embeddings,
)
from modelium.managers.emulated.server.generate import Batcher, Sequence
from modelium.managers.emulated.server.http import Exchange
from modelium.managers.emulated.server.spec import Spec
from modelium.managers.emulated.server.words import Words, count_tokens

MAX_PROMPTS = 256


class OpenAi:
    """The endpoints under /v1. Sampling parameters are accepted and change nothing but `seed`."""

    def __init__(self, spec: Spec, batcher: Batcher) -> None:
        self.spec, self.batcher = spec, batcher
        self._number = 0
        self.posts = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embeddings,
        }

    def models(self) -> dict[str, Any]:
        """The answer to /v1/models."""
        return {"object": "list", "data": [{
            "id": self.spec.model, "object": "model", "created": 0, "owned_by": "modelium",
            "root": self.spec.model, "parent": None, "max_model_len": self.spec.max_model_len,
        }]}  # fmt: skip

    def post(self, exchange: Exchange) -> None:
        """Answer a POST to one of `posts`."""
        try:
            self.posts[exchange.path](exchange, self._read(exchange))
        except BadRequest as error:
            exchange.answer(error.status, error.body)

    def _completions(self, exchange: Exchange, body: dict[str, Any]) -> None:
        prompts = _prompts(body, "prompt")
        output, finish = self._limit(body, "max_tokens", 16)
        self._generate(exchange, body, prompts, output, finish, chat=False)

    def _chat(self, exchange: Exchange, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise WrongShape("messages has to be a list", "messages")
        if not messages:
            raise BadRequest("messages has to be a list with at least one message")
        text = " ".join(_text(message) for message in messages)
        name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
        output, finish = self._limit(body, name, None)
        prompts = [(text.encode("utf-8", "replace"), count_tokens(text))]
        self._generate(exchange, body, prompts, output, finish, chat=True)

    def _embeddings(self, exchange: Exchange, body: dict[str, Any]) -> None:
        prompts = _prompts(body, "input")
        kind = body.get("encoding_format", "float")
        if kind not in ("float", "base64"):
            raise WrongShape(f"encoding_format {kind!r} is not float or base64", "encoding_format")
        self._fits(prompts, 0)
        total = sum(tokens for _, tokens in prompts)
        words = [Words(prompt, self.spec.seed) for prompt, _ in prompts]
        number = self._count()
        left = len(prompts)

        def computed(_last: bool) -> None:
            nonlocal left
            left -= 1
            if not left:
                exchange.answer(200, embeddings(
                    self.spec.model, words, self.spec.embedding_size, total, number,
                    base64=kind == "base64",
                ))  # fmt: skip

        self._put(exchange, [Sequence(tokens, 1, computed) for _, tokens in prompts])

    def _generate(self, exchange: Exchange, body: dict[str, Any], prompts: list[tuple[bytes, int]],
                  output: int | None, finish: str, *, chat: bool) -> None:  # fmt: skip
        """Make `output` tokens for each prompt; None: as many as fit, at most the default."""
        if output is None:
            longest = max(tokens for _, tokens in prompts)
            room = max(1, self.spec.max_model_len - longest)
            output = min(self.spec.default_output_tokens, room)
        self._fits(prompts, output)
        seed = self.spec.seed + _whole(body, "seed", 0)
        choices = [
            Choice(i, Words(prompt, seed), tokens, finish)
            for i, (prompt, tokens) in enumerate(prompts)
        ]
        answer = Answer(exchange, body, choices, self._count(), chat=chat)
        for choice in choices:
            emit = partial(answer.token, choice)
            choice.sequence = Sequence(choice.prompt_tokens, output, emit)
        self._put(exchange, [choice.sequence for choice in choices])

    def _put(self, exchange: Exchange, sequences: list[Sequence]) -> None:
        def gone() -> None:
            for sequence in sequences:
                self.batcher.drop(sequence)

        exchange.on_gone = gone
        for sequence in sequences:
            self.batcher.put(sequence)

    def _count(self) -> int:
        self._number += 1
        return self._number

    # Reading

    def _read(self, exchange: Exchange) -> dict[str, Any]:
        kind = exchange.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind and kind != b"application/json" and not kind.endswith(b"+json"):
            raise WrongShape("Unsupported Media Type: Only 'application/json' is allowed")
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as error:
            raise WrongShape(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise WrongShape("the body has to be a JSON object")
        name = body.setdefault("model", self.spec.model)
        if name != self.spec.model:
            raise BadRequest(f"The model `{name}` does not exist.", "model", 404, "NotFoundError")
        if not isinstance(body.get("stream_options") or {}, dict):
            raise WrongShape("stream_options has to be an object", "stream_options")
        if body.get("stream_options") and not body.get("stream"):
            raise BadRequest("Stream options can only be defined when `stream=True`.",
                             "stream_options")  # fmt: skip
        if _whole(body, "n", 1) != 1:
            raise BadRequest("n: an emulated engine makes one choice for each prompt", "n")
        return body

    def _limit(
        self, body: dict[str, Any], name: str, default: int | None
    ) -> tuple[int | None, str]:
        """How many tokens to make at most, and why that ends an answer."""
        output = _whole(body, name, default)
        if output is not None and output < 1:
            raise BadRequest(f"{name} must be at least 1, got {output}.", name)
        return output, "stop" if output is None else "length"

    def _fits(self, prompts: list[tuple[bytes, int]], output: int) -> None:
        most = self.spec.max_model_len
        for _, tokens in prompts:
            if tokens + output > most:
                raise BadRequest(
                    f"This model's maximum context length is {most} tokens. However, you requested "
                    f"{output} output tokens and your prompt contains {tokens} input tokens, "
                    f"for a total of {tokens + output} tokens. Please reduce the length of the "
                    "input prompt or the number of requested output tokens.",
                    "input_tokens",
                )


def _prompts(body: dict[str, Any], name: str) -> list[tuple[bytes, int]]:
    """The prompts of a request as (bytes, tokens): a text, token ids, or a list of either."""
    given = body.get(name)
    if isinstance(given, str) or (isinstance(given, list) and given and _is_ids(given)):
        given = [given]
    if not isinstance(given, list) or not 0 < len(given) <= MAX_PROMPTS:
        raise BadRequest(
            f"{name} has to be text or token ids, or up to {MAX_PROMPTS} of them", name
        )
    prompts = []
    for one in given:
        if isinstance(one, str):
            prompts.append((one.encode("utf-8", "replace"), count_tokens(one)))
        elif isinstance(one, list) and one and _is_ids(one):
            prompts.append((orjson.dumps(one), len(one)))
        else:
            raise WrongShape(f"{name} has to be text or token ids, or a list of them", name)
    return prompts


def _is_ids(given: list[Any]) -> bool:
    return all(isinstance(x, int) and not isinstance(x, bool) for x in given)


def _text(message: Any) -> str:
    """The text of a chat message, whose content may come in parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise WrongShape("each message has to be an object with a role", "messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    if content is None or isinstance(content, str):
        return content or ""
    raise WrongShape("the content of a message has to be text or a list of parts", "messages")


def _whole(body: dict[str, Any], name: str, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongShape(f"{name} has to be a whole number, got {value!r}", name)
    return value
