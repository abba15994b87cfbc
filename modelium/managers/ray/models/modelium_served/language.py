"""A language model of transformers that speaks OpenAI's completions and chats, also as streams."""

import asyncio
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import torch
import transformers
from starlette.responses import JSONResponse, Response, StreamingResponse

from .asked import Asked, RefusedError, read
from .text import Text


class Language:
    """The model in the folder `model["path"]`, which clients call `model["name"]`."""

    def __init__(self, model: dict) -> None:
        self.name, self.streams, self.work = model["name"], 0, 0
        trust = {"trust_remote_code": bool(model.get("trust_remote_code", False))}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model["path"], **trust)
        where = {"device_map": "auto"} if model["gpus"] > 1 and torch.cuda.is_available() else {}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if (share := model.get("memory_share")) and self.device == "cuda":
            for device in range(torch.cuda.device_count()):
                torch.cuda.set_per_process_memory_fraction(share, device)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            model["path"], dtype=model.get("dtype", "auto"), **trust, **where
        )
        self.model = (loaded if where else loaded.to(self.device)).eval()
        own = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        self.context = min(own, model.get("max_model_len") or own)
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.pool = ThreadPoolExecutor(model["threads"], thread_name_prefix="generate")
        self.paths = {
            ("POST", "/v1/completions"): lambda body: self.answer(read(body, False)),
            ("POST", "/v1/chat/completions"): lambda body: self.answer(read(body, True)),
            ("GET", "/v1/models"): self.models,
        }

    async def models(self, _) -> Response:
        one = {"id": self.name, "object": "model", "owned_by": "modelium"}
        return JSONResponse({"object": "list", "data": [{**one, "max_model_len": self.context}]})

    async def answer(self, asked: Asked) -> Response:
        """Begin to generate, and give the whole text or a stream of it."""
        run = Generation(self, asked, self._tokens(asked))
        shape = Shape(self.name, asked)
        if asked.stream:
            return StreamingResponse(self._stream(run, shape), media_type="text/event-stream")
        try:
            texts = [text async for text in run.pieces()]
        finally:
            run.given_up.set()
        return JSONResponse(shape.whole("".join(texts), run))

    async def _stream(self, run: "Generation", shape: "Shape"):
        self.streams += 1
        try:
            if (first := shape.first()) is not None:
                yield _event(first)
            async for text in run.pieces():
                if text:
                    yield _event(shape.piece(text, None))
            yield _event(shape.piece("", run.reason))
            if run.asked.usage:
                yield _event(shape.usage(run))
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status has gone out: the stream says it
            why = {"message": f"{type(error).__name__}: {error}", "type": "server_error"}
            yield _event({"error": {**why, "code": 500}})
        finally:
            self.streams -= 1
            run.given_up.set()

    def _tokens(self, asked: Asked) -> list[int]:
        """The prompt's tokens. Raises RefusedError if they leave no room."""
        if asked.chat:
            if not self.tokenizer.chat_template:
                raise RefusedError(f"{self.name} has no chat template: use /v1/completions")
            try:
                text = self.tokenizer.apply_chat_template(
                    asked.prompt, add_generation_prompt=True, tokenize=False
                )
            except Exception as error:  # templates raise what they like about messages
                raise RefusedError(f"the chat template refuses it: {error}", "messages") from None
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        elif isinstance(asked.prompt, str):
            tokens = self.tokenizer(asked.prompt)["input_ids"]
        else:
            tokens = asked.prompt
            known = self.model.get_input_embeddings().num_embeddings
            if any(not 0 <= token < known for token in tokens):
                raise RefusedError(f"prompt has a token that is not in 0 to {known - 1}", "prompt")
        if not tokens:
            raise RefusedError("prompt is empty", "prompt")
        room = self.context - len(tokens)
        if asked.most is None:
            asked.most = room
        if not 1 <= asked.most <= room:
            raise RefusedError(
                f"the context has {self.context} tokens: {len(tokens)} of the prompt and"
                f" {max(1, asked.most)} of the answer are too many",
                "max_tokens",
            )
        return tokens


class Generation:
    """One answer as it is made, in a thread; what it says is read in the event loop."""

    def __init__(self, served: Language, asked: Asked, tokens: list[int]) -> None:
        self.served, self.asked, self.prompt = served, asked, tokens
        self.text = Text(
            lambda some: served.tokenizer.decode(some, skip_special_tokens=True), asked.stops
        )
        self.given_up = threading.Event()
        self.reason = "length"
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._skip = True

    async def pieces(self):
        """Pieces of the text as they come; raises what went wrong."""
        self.served.pool.submit(self._run)
        while (said := await self._said.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said

    # In the thread

    def _run(self) -> None:
        try:
            if not self.given_up.is_set():
                self._generate()
            self._say(self.text.rest())
            if self.text.stopped:
                self.reason = "stop"
            self._say(None)
        except Exception as error:
            self._say(error)

    def _generate(self) -> None:
        asked, served = self.asked, self.served
        warm = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k}
        given = torch.tensor([self.prompt], device=served.model.device)
        least = {"min_new_tokens": asked.most} if asked.ignore_end else {}
        with torch.inference_mode():
            served.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=asked.most,
                do_sample=asked.temperature > 0,
                repetition_penalty=asked.repetition_penalty,
                pad_token_id=next(iter(served.ends), 0),
                stopping_criteria=transformers.StoppingCriteriaList([self._over]),
                streamer=self,
                **least,
                **(warm if asked.temperature > 0 else {"top_p": None, "top_k": None}),
            )

    def put(self, tokens) -> None:
        """transformers' streamer: the prompt, then each token."""
        if self._skip:
            self._skip = False
            return
        for token in tokens.reshape(-1).tolist():
            self.served.work += 1
            self.reason = "stop" if token in self.served.ends else "length"
            self._say(self.text.add(token))

    def end(self) -> None:
        """transformers' streamer: no more will come."""

    def _over(self, tokens, scores, **more):
        """Whether to stop: somebody gave it up, or the text has ended."""
        over = self.given_up.is_set() or self.text.stopped
        return torch.full((tokens.shape[0],), over, device=tokens.device)

    def _say(self, what: str | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._said.put_nowait, what)


class Shape:
    """OpenAI's shape of an answer, whole and in pieces."""

    def __init__(self, model: str, asked: Asked) -> None:
        self.chat = asked.chat
        kind = "chat.completion" if asked.chat else "text_completion"
        stem = "chatcmpl" if asked.chat else "cmpl"
        self.common = {
            "id": f"{stem}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, run: Generation) -> dict:
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {**self.common, "choices": [self._choice(said, run.reason)], "usage": _usage(run)}

    def first(self) -> dict | None:
        """A chat's stream begins with who speaks."""
        said = {"delta": {"role": "assistant", "content": ""}}
        return {**self.common, "choices": [self._choice(said, None)]} if self.chat else None

    def piece(self, text: str, reason: str | None) -> dict:
        delta = {"content": text} if text else {}
        said = {"delta": delta} if self.chat else {"text": text}
        return {**self.common, "choices": [self._choice(said, reason)]}

    def usage(self, run: Generation) -> dict:
        return {**self.common, "choices": [], "usage": _usage(run)}

    def _choice(self, said: dict, reason: str | None) -> dict:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _usage(run: Generation) -> dict[str, int]:
    prompt, made = len(run.prompt), run.text.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _event(what: dict) -> str:
    return f"data: {json.dumps(what, ensure_ascii=False)}\n\n"
