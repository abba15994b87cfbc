"""OpenAI's shapes as vLLM writes them: whole answers, streams, errors."""

from __future__ import annotations

import time
from array import array
from base64 import b64encode
from typing import Any

import orjson

from modelium.managers.emulated.server.generate import Sequence
from modelium.managers.emulated.server.http import Exchange
from modelium.managers.emulated.server.words import Words


class BadRequest(Exception):  # noqa: N818 - it is an answer
    """A request that is answered with an error of OpenAI's shape."""

    def __init__(self, why: str, param: str | None = None, status: int = 400,
                 kind: str = "BadRequestError") -> None:  # fmt: skip
        super().__init__(why)
        self.status = status
        self.body = {"error": {"message": why, "type": kind, "param": param, "code": status}}


class WrongShape(BadRequest):
    """A body in which a field is missing or of the wrong type."""

    def __init__(self, why: str, param: str | None = None) -> None:
        super().__init__(why, param, kind="Bad Request")


class Choice:
    """One prompt of a request, and the text made for it."""

    __slots__ = ("finish", "head", "index", "prompt_tokens", "sequence", "tail", "text", "words")

    def __init__(self, index: int, words: Words, prompt_tokens: int, finish: str) -> None:
        self.index, self.words, self.prompt_tokens = index, words, prompt_tokens
        self.finish = finish
        """Why it will end: "length" if the client's limit cuts it, else "stop"."""
        self.text: list[bytes] = []
        self.head = self.tail = b""
        self.sequence: Sequence


class Answer:
    """One completion or chat completion under way."""

    def __init__(self, exchange: Exchange, body: dict[str, Any], choices: list[Choice],
                 number: int, *, chat: bool) -> None:  # fmt: skip
        self.exchange, self.choices, self.chat = exchange, choices, chat
        self.open = len(choices)
        given = exchange.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{given or f'{number:016x}'}"
        self.model = body["model"]
        self.created = int(time.time())
        options = body.get("stream_options") or {}
        self.usage_wanted = bool(options.get("include_usage"))
        self.stream = bool(body.get("stream"))
        if self.stream:
            self._begin_stream()

    def token(self, choice: Choice, last: bool) -> None:
        """A choice has one token more."""
        word = choice.words.next()
        if not self.stream:
            choice.text.append(word)
        elif last:
            reason = b'"finish_reason":"%b"' % choice.finish.encode()
            end = choice.tail.replace(b'"finish_reason":null', reason)
            self.exchange.send(choice.head + word + end)
        else:
            self.exchange.send(choice.head + word + choice.tail)
        if last:
            self.open -= 1
            if not self.open:
                self._end()

    def _end(self) -> None:
        if not self.stream:
            self.exchange.answer(200, self._whole())
            return
        if self.usage_wanted:
            self.exchange.send(_event({**self._frame(), "choices": [], "usage": self.usage()}))
        self.exchange.send(b"data: [DONE]\n\n")
        self.exchange.close(whole=False)

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        prompt = sum(choice.prompt_tokens for choice in self.choices)
        output = sum(choice.sequence.emitted for choice in self.choices)
        return {"prompt_tokens": prompt, "total_tokens": prompt + output,
                "completion_tokens": output}  # fmt: skip

    # Whole

    def _whole(self) -> dict[str, Any]:
        choices = [self._choice(choice, b"".join(choice.text).decode()) for choice in self.choices]
        frame = {**self._frame(), "object": "chat.completion" if self.chat else "text_completion"}
        return {**frame, "choices": choices, "usage": self.usage()}

    def _choice(self, choice: Choice, text: str) -> dict[str, Any]:
        end = {"logprobs": None, "finish_reason": choice.finish, "stop_reason": None}
        if self.chat:
            message = {"role": "assistant", "content": text}
            return {"index": choice.index, "message": message, **end}
        return {"index": choice.index, "text": text, **end}

    # Streams

    def _begin_stream(self) -> None:
        self.exchange.open()
        for choice in self.choices:
            index, end = {"index": choice.index}, {"logprobs": None, "finish_reason": None}
            if self.chat:
                first = {**index, "delta": {"role": "assistant", "content": ""}, **end}
                self.exchange.send(_event({**self._frame(), "choices": [first]}))
            made = {"delta": {"content": "\0"}} if self.chat else {"text": "\0"}
            whole = _event({**self._frame(), "choices": [{**index, **made, **end}]})
            choice.head, choice.tail = whole.rsplit(b"\\u0000", 1)

    def _frame(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def embeddings(model: str, words: list[Words], size: int, prompt_tokens: int, number: int,
               *, base64: bool) -> dict[str, Any]:  # fmt: skip
    """The answer to /v1/embeddings: one vector for each of `words`."""
    data = []
    for index, stream in enumerate(words):
        vector: list[float] | str = stream.vector(size)
        if base64:
            vector = b64encode(array("f", vector).tobytes()).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens,
             "completion_tokens": 0, "prompt_tokens_details": None}  # fmt: skip
    return {"id": f"embd-{number:016x}", "object": "list", "created": int(time.time()),
            "model": model, "data": data, "usage": usage}  # fmt: skip
