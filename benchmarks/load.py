"""A cheap HTTP load generator: keep-alive connections on bare asyncio, one request each at a time.

It reads no more of an answer than its end, so that it takes little of the CPU that is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

MOST_AT_ONCE = 256
"""Requests of an open loop that may be under way; a server that needs more does not keep up."""
CHUNKED_END = b"0\r\n\r\n"
clock = time.perf_counter


@dataclass(slots=True)
class Timed:
    """One answer."""

    status: int
    first_s: float
    """To the first byte of the body, for streams; of the answer, otherwise."""
    end_s: float
    whole: bool


def request(url: str, path: str, body: dict[str, Any]) -> bytes:
    """The bytes of one POST."""
    raw = json.dumps(body).encode()
    host = urlsplit(url).netloc
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Timed] | None = None
        self._reset()

    def _reset(self) -> None:
        self._head, self._tail = b"", b""
        self._left: int | None = None
        """Bytes of the body to come; None if the answer is chunked."""
        self._status, self._first_s = 0, 0.0

    async def ask(self, raw: bytes) -> Timed:
        """Send a request and wait for the end of its answer."""
        assert self.transport is not None, "the server has closed the connection"
        self._reset()
        self._answered = asyncio.get_running_loop().create_future()
        self._begun_s = clock()
        self.transport.write(raw)
        return await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._end(whole=False)

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._read(head.lower())
        if data and not self._first_s:
            self._first_s = clock() - self._begun_s
        if self._left is None:
            self._tail = (self._tail + data)[-len(CHUNKED_END) :]
            if self._tail == CHUNKED_END:
                self._end(whole=True)
        else:
            self._left -= len(data)
            if self._left <= 0:
                self._end(whole=True)

    def _read(self, head: bytes) -> None:
        self._status = int(head[9:12])
        _, found, rest = head.partition(b"content-length:")
        self._left = int(rest.partition(b"\r\n")[0]) if found else None

    def _end(self, *, whole: bool) -> None:
        answered, self._answered = self._answered, None
        if answered is not None and not answered.done():
            end_s = clock() - self._begun_s
            answered.set_result(Timed(self._status, self._first_s, end_s, whole))


@asynccontextmanager
async def lines(url: str, count: int) -> AsyncIterator[list[Line]]:
    """So many connections."""
    where, loop = urlsplit(url), asyncio.get_running_loop()
    made = [await loop.create_connection(Line, where.hostname, where.port) for _ in range(count)]
    try:
        yield [line for _, line in made]
    finally:
        for transport, _ in made:
            transport.close()


async def closed(url: str, raw: bytes, count: int, seconds: float) -> list[Timed]:
    """So many clients, each with its next request as soon as the last is answered."""
    answers: list[Timed] = []
    until_s = clock() + seconds

    async def client(line: Line) -> None:
        while clock() < until_s:
            answers.append(await line.ask(raw))

    async with lines(url, count) as made:
        await asyncio.gather(*(client(line) for line in made))
    return answers


async def opened(url: str, raw: bytes, rate_per_s: float, seconds: float, seed: int) -> list[Timed]:
    """Poisson arrivals at a rate, whatever becomes of the answers."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    answers: list[Timed] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(line: Line) -> None:
        answers.append(await line.ask(raw))
        free.append(line)

    async with lines(url, MOST_AT_ONCE) as made:
        free = deque(made)
        at_s = begun_s = loop.time()
        while at_s < begun_s + seconds:
            at_s += rng.expovariate(rate_per_s)
            await asyncio.sleep(at_s - loop.time())
            if not free:
                raise SystemExit(f"{url} does not keep up with {rate_per_s:g} requests/s")
            task = loop.create_task(one(free.popleft()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return answers
