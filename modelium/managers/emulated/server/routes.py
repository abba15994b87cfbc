"""Which request goes where in an emulated engine; sleep, wake and faults on request."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import orjson

from modelium.managers.emulated.server.generate import Batcher
from modelium.managers.emulated.server.http import Exchange
from modelium.managers.emulated.server.infer import Inferrer
from modelium.managers.emulated.server.kserve import KServe
from modelium.managers.emulated.server.metrics import KIND, exposition
from modelium.managers.emulated.server.openai import OpenAi
from modelium.managers.emulated.server.spec import Generate, Spec

FLUSH_S = 0.01
"""What was said before a crash that was asked for is on its way after this."""
Handler = Callable[[Exchange], None]


class Routes:
    """One engine and everything that it answers."""

    def __init__(self, spec: Spec, loop: asyncio.AbstractEventLoop, *, faults: bool) -> None:
        self.spec, self._loop = spec, loop
        self.sleep_level = 0
        self._settled_s = 0.0
        """When the last sleep or wake that was asked for is done."""
        self._hung = False
        self.engine: Batcher | Inferrer
        self._gets: dict[str, Handler] = {
            "/health": lambda exchange: exchange.answer(200, b"", "text/plain"),
            "/metrics": self._metrics,
            "/is_sleeping": lambda exchange: exchange.answer(
                200, {"is_sleeping": self.sleep_level > 0}
            ),
        }
        self._posts: dict[str, Handler] = {"/sleep": self._sleep, "/wake_up": self._wake}
        if faults:
            self._posts["/faults"] = self._fault
        if isinstance(spec.engine, Generate):
            self.engine = Batcher(spec.engine, spec.speed, loop)
            openai = OpenAi(spec, self.engine)
            self._gets["/v1/models"] = lambda exchange: exchange.answer(200, openai.models())
            self._posts |= dict.fromkeys(openai.posts, openai.post)
        else:
            self.engine = Inferrer(spec.engine, spec.speed, loop)
            self._add_kserve(KServe(spec, self.engine))

    def _add_kserve(self, kserve: KServe) -> None:
        for path in ("/v2/health/live", "/v2/health/ready"):
            self._gets[path] = self._gets["/health"]
        for path in (f"/v2/models/{self.spec.model}", f"/v2/models/{self.spec.model}/versions/1"):
            self._gets[path] = lambda exchange: exchange.answer(200, kserve.metadata())
            self._gets[f"{path}/ready"] = self._gets["/health"]
            self._posts[f"{path}/infer"] = kserve.infer

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        table = self._posts if exchange.method == "POST" else self._gets
        handler = table.get(exchange.path)
        if handler is not None and exchange.method in ("GET", "HEAD", "POST"):
            handler(exchange)
        elif exchange.path in self._gets or exchange.path in self._posts:
            exchange.answer(405, {"detail": "Method Not Allowed"})
        elif exchange.path.startswith("/v2/models/"):
            name = exchange.path.split("/")[3]
            exchange.answer(404, {"error": f"Request for unknown model: '{name}' is not found"})
        else:
            exchange.answer(404, {"detail": "Not Found"})

    def _metrics(self, exchange: Exchange) -> None:
        exchange.answer(200, exposition(self.spec.model, self.engine, self.sleep_level), KIND)

    # Sleep

    def _sleep(self, exchange: Exchange) -> None:
        level = exchange.query.get("level", ["1"])[0]
        if level not in ("1", "2"):
            exchange.answer(400, {"error": f"level is {level!r}: it is 1 or 2"})
            return
        self.engine.pause(forget=True)
        self._settle(exchange, self.spec.sleep_s.get(level, 0.0), lambda: self._set(int(level)))

    def _wake(self, exchange: Exchange) -> None:
        seconds = self.spec.wake_s.get(str(self.sleep_level), 0.0)
        self._settle(exchange, seconds, lambda: self._set(0))

    def _set(self, level: int) -> None:
        self.sleep_level = level
        if not level and not self._hung:
            self.engine.resume()

    def _settle(self, exchange: Exchange, seconds: float, then: Callable[[], None]) -> None:
        """Answer when a change that takes `seconds` is done; changes happen one after another."""
        now_s = time.monotonic()
        self._settled_s = max(self._settled_s, now_s) + seconds / self.spec.speed

        def done() -> None:
            then()
            exchange.answer(200, b"", "text/plain")

        self._loop.call_later(self._settled_s - now_s, done)

    # Faults

    def _fault(self, exchange: Exchange) -> None:
        """{"kind": "hang"}, {"kind": "mend"} or {"kind": "crash", "after_tokens": n}."""
        try:
            body = orjson.loads(exchange.body)
            kind, after = body["kind"], int(body.get("after_tokens", 0))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            exchange.answer(400, {"error": 'expected {"kind": "hang", "mend" or "crash"}'})
            return
        if kind == "hang":
            self._hung = True
            self.engine.pause(forget=False)
        elif kind == "mend":
            self._hung = False
            if not self.sleep_level:
                self.engine.resume()
        elif kind == "crash":
            self._crash(after)
        else:
            exchange.answer(400, {"error": f"kind is {kind!r}: it is hang, mend or crash"})
            return
        exchange.answer(200, {})

    def _crash(self, after_tokens: int) -> None:
        """Die as by a segmentation fault, once so many tokens more are out."""
        engine = self.engine
        done = engine.output_tokens if isinstance(engine, Batcher) else engine.finished
        target = done + after_tokens

        def look() -> None:
            made = engine.output_tokens if isinstance(engine, Batcher) else engine.finished
            if made >= target:
                engine.pause(forget=False)  # and makes no more while the last are being sent
                self._loop.call_later(FLUSH_S, os.kill, os.getpid(), signal.SIGKILL)

        engine.ended = look
        look()
