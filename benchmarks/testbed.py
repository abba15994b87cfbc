"""A live server that is tried hard: its clients, what became of each request, and its books.

`modelium run` with emulated engines runs in its own process. Every request has a name of its own,
and is *answered* whole, *told* in clear words that it failed, or *cut* off. What it may be is
stated where it is sent; all else counts as lost.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.live.running import Running, left_behind, running, still_there, sweep, until

ANSWERED, TOLD, CUT, LEFT = "answered", "told", "cut", "left"
"""What becomes of a request; LEFT: its client went before the end."""
PATIENCE_S = 120.0
"""A client that has heard nothing for this long says that its request is lost."""
LOOKED_S = 5.0
"""By then the memory of GPUs has been read again."""
SHORT = 20
"""Tokens of an answer."""
SHOWN = 5
WRONG = ("lost", "unrecorded", "orphans", "unaccounted_bytes")
"""Columns of a result that must be 0."""


@dataclass
class Clients:
    """All who ask, each in a thread, and what became of it."""

    pool: ThreadPoolExecutor
    outcomes: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """Statuses of the answers that told of a failure."""
    lost: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Requests that the journal has to know."""
    slowest_s: float = 0.0
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def name(self, *, recorded: bool = True) -> str:
        """A name for the next request."""
        with self._lock:
            name = f"r{next(self._numbers)}"
            if recorded:
                self.names.append(name)
        return name

    def note(self, outcome: str, words: str = "", took_s: float = 0.0, lost: str = "") -> None:
        """A request is over; `lost` says why it should have ended otherwise."""
        with self._lock:
            self.outcomes[outcome] += 1
            self.slowest_s = max(self.slowest_s, took_s)
            if outcome == TOLD:
                self.told[words[:3]] += 1
            if lost:
                self.lost.append(lost)

    def ask(
        self, url: str, model: str, tokens: int = SHORT, *, stream: bool = False,
        may: tuple[str, ...] = (ANSWERED,), recorded: bool = True,
        begun: threading.Event | None = None,
    ) -> Future[str]:  # fmt: skip
        """Send a request; the outcome is in the tally before the future has it.

        `begun` happens with the first piece of a stream.
        """
        name = self.name(recorded=recorded)

        def work() -> str:
            begun_s = time.monotonic()
            outcome, words = complete(url, model, tokens, stream, name, begun or threading.Event())
            lost = "" if outcome in may else f"{name} of {model} was {outcome}: {words}"
            self.note(outcome, words, time.monotonic() - begun_s, lost)
            return outcome

        return self.pool.submit(work)


def complete(
    url: str, model: str, tokens: int, stream: bool, name: str, begun: threading.Event
) -> tuple[str, str]:
    """One completion: what became of it, and the words that came with it."""
    body = {"model": model, "prompt": "hello", "max_tokens": tokens, "stream": stream}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body),
            {"Content-Type": "application/json", "X-Request-Id": name},
        )  # fmt: skip
        answer = connection.getresponse()
        if answer.status == 200 and stream:
            return _streamed(answer, tokens, begun)
        told = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return CUT, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if answer.status == 200:
        return _whole(told["usage"]["completion_tokens"], tokens)
    return TOLD, f"{answer.status} {told['error']['message']}"


def _streamed(
    answer: http.client.HTTPResponse, tokens: int, begun: threading.Event
) -> tuple[str, str]:
    pieces, words = 0, ""
    for line in answer:
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return (TOLD, f"200 {words}") if words else _whole(pieces, tokens)
        if data and "error" in (event := json.loads(data)):
            words = str(event["error"]["message"])
        elif data:
            pieces += 1
            begun.set()
    return CUT, f"the stream ended after {pieces} pieces: {words}"


def _whole(pieces: int, tokens: int) -> tuple[str, str]:
    return (ANSWERED, "") if pieces == tokens else (CUT, f"{pieces} of {tokens} tokens came")


@dataclass
class Testbed:
    """A folder, the server in it, its clients, and what was found wrong."""

    folder: Path
    clients: Clients
    orphans: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    """Requests of which the journal knows nothing."""
    unaccounted_bytes: int = 0
    _server: Running | None = None

    @property
    def server(self) -> Running:
        """The server that runs."""
        assert self._server is not None, "no server runs"
        return self._server

    @property
    def url(self) -> str:
        return self.server.url

    def ask(self, model: str, tokens: int = SHORT, **more: Any) -> Future[str]:
        return self.clients.ask(self.url, model, tokens, **more)

    def status(self) -> dict[str, Any]:
        return self.server.client.status()

    def act(self, model: str, verb: str) -> None:
        """What an operator calls."""
        self.server.client.act(model, verb)

    def instances(self) -> list[dict[str, Any]]:
        """Every instance, once."""
        every = [one for gpu in self.status()["gpus"] for one in gpu["instances"]]
        return list({one["id"]: one for one in every}.values())

    def ready(self, model: str) -> list[dict[str, Any]]:
        """The model's instances that take requests, the busiest first."""
        there = [
            one for one in self.instances() if one["model"] == model and one["phase"] == "ready"
        ]  # fmt: skip
        return sorted(there, key=lambda one: -one["running"])

    def signal(self, model: str, number: int) -> None:
        """Send a signal to every engine that serves the model."""
        for one in self.ready(model):
            os.killpg(one["pid"], number)

    def must_run(self, pids: set[int]) -> None:
        """Engines that were there before have been adopted."""
        for pid in pids - {one["pid"] for one in self.instances()}:
            self.clients.lost.append(f"engine {pid} was not adopted")

    @contextmanager
    def running(self, what: Mapping[str, Any], *options: str, **more: Any) -> Iterator[Running]:
        """A server that the body ends."""
        self.folder.mkdir(exist_ok=True)
        with running(self.folder, what, *options, **more) as self._server:
            yield self._server
        self._server = None

    @contextmanager
    def serving(self, what: Mapping[str, Any], *options: str, **more: Any) -> Iterator[None]:
        """A server from its start to its orderly end."""
        with self.running(what, *options, **more) as server:
            yield
            server.end()

    @contextmanager
    def stream(self, model: str, tokens: int, buffer_bytes: int = 0) -> Iterator[socket.socket]:
        """A stream on a bare connection, which is closed at the end, whatever has come of it."""
        where, name = urlsplit(self.url), self.clients.name()
        body = json.dumps({"model": model, "prompt": "x", "max_tokens": tokens, "stream": True})
        with socket.socket() as line:
            if buffer_bytes:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            line.connect((where.hostname, where.port))
            line.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nX-Request-Id: {name}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                f"{body}".encode()
            )
            yield line

    def processes(self) -> list[int]:
        """Processes of engines that this folder's servers have started."""
        found = []
        for pid in left_behind(self.folder):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                if os.getsid(pid) == pid:
                    found.append(pid)
        return found

    def settle(self) -> None:
        """Wait until nothing is under way, then hold the books against what is there."""

        def quiet() -> dict[str, Any] | None:
            status = self.status()
            phases = {one["phase"] for gpu in status["gpus"] for one in gpu["instances"]}
            busy = status["running"] or status["waiting"] or phases - {"ready", "asleep"}
            return None if busy else status

        status, until_s = until(quiet), time.monotonic() + LOOKED_S
        while (gap := unaccounted_bytes(status)) and time.monotonic() < until_s:
            time.sleep(0.1)  # memory is read once a second
            status = until(quiet)
        self.unaccounted_bytes += gap
        pids = {one["pid"] for gpu in status["gpus"] for one in gpu["instances"]}
        self.orphans += [f"process {pid}" for pid in self.processes() if pid not in pids]

    def close(self) -> None:
        """All servers have ended: look at what they have left."""
        self.orphans += still_there(self.folder)
        with contextlib.closing(sqlite3.connect(self.folder / ".modelium" / "journal.db")) as db:
            known = {name for (name,) in db.execute("SELECT id FROM requests")}
        self.unrecorded = [name for name in self.clients.names if name not in known]

    def result(self) -> dict[str, Any]:
        """What was found, as columns of a table."""
        clients = self.clients
        return {
            "requests": sum(clients.outcomes.values()), **clients.outcomes,
            "lost": len(clients.lost), "unrecorded": len(self.unrecorded),
            "orphans": len(self.orphans), "unaccounted_bytes": self.unaccounted_bytes,
            "slowest_s": round(clients.slowest_s, 2),
            "why": [*clients.lost[:SHOWN], *self.unrecorded[:SHOWN], *self.orphans[:SHOWN]],
        }  # fmt: skip


@contextmanager
def testbed(clients: int) -> Iterator[Testbed]:
    """A testbed with so many clients at most; whatever happens, nothing of it is left."""
    with tempfile.TemporaryDirectory() as place:
        bed = Testbed(Path(place) / "site", Clients(ThreadPoolExecutor(clients)))
        try:
            yield bed
            bed.close()
        finally:
            sweep(bed.folder)
            bed.clients.pool.shutdown(cancel_futures=True)
            progress("")


def unaccounted_bytes(status: Mapping[str, Any]) -> int:
    """What books, instances and the memory that was seen differ by."""
    gap = 0
    for gpu in status["gpus"]:
        held = sum(one["bytes_per_gpu"] for one in gpu["instances"])
        seen = gpu["used_bytes"] if status["pretend_gpus"] else held
        gap += abs(gpu["booked_bytes"] - held) + abs(seen - held)
    return gap


def progress(words: str) -> None:
    """On a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)
