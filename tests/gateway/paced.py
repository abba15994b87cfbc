"""A front in a test's hands before a real engine: a piece of an answer goes when it is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from aiohttp import web

from tests.gateway.site import Site

PROMPT_TOKENS = 2
DONE = b"data: [DONE]\n\n"


@dataclass
class Paced:
    """Answers /v1/completions with as many words as were asked for, one after another."""

    asked: int = 0
    _let: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def let(self, pieces: int = 1) -> None:
        """So many words more may go; what is not streamed goes with its last."""
        for _ in range(pieces):
            self._let.release()

    async def play(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self.asked += 1
        words: int = body["max_tokens"]
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": words}
        if not body.get("stream"):
            for _ in range(words):
                await self._let.acquire()
            text = " word" * words
            return web.json_response({"choices": [{"index": 0, "text": text}], "usage": usage})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(http)
        for _ in range(words):
            await self._let.acquire()
            await answer.write(b'data: {"choices":[{"index":0,"text":" word"}]}\n\n')
        told = b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
        await answer.write(told % tuple(usage.values()) + DONE)
        return answer


@asynccontextmanager
async def paced(here: Site) -> AsyncIterator[Paced]:
    """From now on what is asked of the engines that are there is answered by the test."""
    front = Paced()
    app = web.Application()
    app.router.add_post("/v1/completions", front.play)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    engines = here.house.cluster.engines
    engines.update({name: replace(engine, url=url) for name, engine in engines.items()})
    try:
        yield front
    finally:
        await runner.cleanup()
