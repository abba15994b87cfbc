"""Minutes of mixed load while engines are killed, operators interfere and clients misbehave.

    python benchmarks/soak.py [--minutes 6] [--policy ilp:every_s=15] [--rate 12] [--json]

`modelium run` with emulated engines, ten times as fast as real ones, in its own process: six models
on two GPUs that hold two each. This process sends Poisson arrivals of streams and whole answers, of
which some clients leave early, read slowly, or ask for a model that does not exist. Meanwhile it
kills engines and calls what operators call. In the end every request must have had its answer and
its row in the journal, and nothing may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import faults
import psutil
from faults import ANSWERED, TOLD, Clients, Site

from modelium.client import ServerError
from tests.live.running import still_there, sweep

MODELS = (
    "llama-3.1-8b", "qwen2.5-7b", "mistral-7b", "phi-3.5-mini", "gemma-2-2b", "llama-3.2-3b",
)  # fmt: skip
SHARES = (30, 20, 15, 15, 10, 10)
NOBODY = "no-such-model"
CONFIG: dict[str, Any] = {
    "cluster": {"gpus": [{"kind": "h100-80g", "memory": "40GiB", "count": 2}]},
    "models": list(MODELS),
    "emulated": {"speed": 10},
    "live": {"probe_every": 2},
}
KILL_EVERY_S, OPERATE_EVERY_S, SLOW_EVERY_S = 25.0, 7.0, 12.0
LEFT = "left"
"""Clients that went before the end."""
VERBS = ("load", "unload", "sleep", "wake", "pin", "unpin")
SLOW_S = 8.0
"""A slow reader reads a byte now and then for so long."""


@dataclass
class Load:
    """Who asks, kills and calls; all from one seed."""

    site: Site
    rate_per_s: float
    rng: random.Random
    asked: list[Future[str]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    """What was done to the server."""
    over: threading.Event = field(default_factory=threading.Event)

    def arrivals(self) -> None:
        """Requests at random times, none waiting for another."""
        while not self.over.wait(self.rng.expovariate(self.rate_per_s)):
            draw, model = self.rng.random(), self.rng.choices(MODELS, SHARES)[0]
            tokens, stream = self.rng.randrange(1, 200), self.rng.random() < 0.4
            if draw < 0.03:
                may = (TOLD,)
                self.asked.append(self.site.ask(NOBODY, may=may, recorded=False))
            elif draw < 0.08:
                self.asked.append(self.leave(model, self.rng.uniform(0.0, 3.0)))
            else:
                # A stream whose engine is killed is told so; a model may be unloaded by hand.
                self.asked.append(self.site.ask(model, tokens, stream=stream, may=(ANSWERED, TOLD)))

    def leave(self, model: str, after_s: float) -> Future[str]:
        """A client that hangs up."""

        def work() -> str:
            with line(self.site, model):
                time.sleep(after_s)
            self.site.clients.outcomes[LEFT] += 1
            return LEFT

        return self.site.clients.pool.submit(work)

    def slow_readers(self) -> None:
        """Clients that read a byte now and then, and go."""
        while not self.over.wait(SLOW_EVERY_S):
            with line(self.site, self.rng.choice(MODELS), 100_000) as slow:
                until_s = time.monotonic() + SLOW_S
                slow.settimeout(1.0)
                while time.monotonic() < until_s and not self.over.wait(0.2):
                    with contextlib.suppress(TimeoutError):
                        slow.recv(1)
            self.site.clients.outcomes[LEFT] += 1
            self.done["slow readers"] += 1

    def killer(self) -> None:
        """SIGKILL to an engine, serving or loading."""
        while not self.over.wait(KILL_EVERY_S):
            if pids := faults.engines(self.site.folder):
                with contextlib.suppress(ProcessLookupError):
                    psutil.Process(self.rng.choice(pids)).kill()
                    self.done["engines killed"] += 1

    def operator(self) -> None:
        """Calls by hand, some of them refused."""
        while not self.over.wait(OPERATE_EVERY_S):
            model, verb = self.rng.choice(MODELS), self.rng.choice(VERBS)
            self.operate(model, verb)
            if verb == "pin":
                self.operate(model, "unpin")

    def operate(self, model: str, verb: str) -> None:
        assert self.site.server is not None
        self.done["operator calls"] += 1
        try:
            self.site.server.client.act(model, verb)
        except ServerError:
            self.done["operator calls refused"] += 1

    def run(self, seconds: float) -> None:
        """All at once, until the time is over; then wait for what is under way."""
        works: list[Callable[[], None]] = [
            self.arrivals, self.slow_readers, self.killer, self.operator,
        ]  # fmt: skip
        with ThreadPoolExecutor(len(works)) as pool:
            going = [pool.submit(work) for work in works]
            time.sleep(seconds)
            self.over.set()
            for work in going:
                work.result()
        for asked in self.asked:
            asked.result()


@contextmanager
def line(site: Site, model: str, tokens: int = 150) -> Iterator[socket.socket]:
    """A streaming request on a connection that is closed in the end, whatever has come."""
    where, name = urlsplit(site.url), f"r{next(site.clients.numbers)}"
    site.clients.names.append(name)
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": tokens, "stream": True})
    with socket.create_connection((where.hostname or "", where.port or 0)) as made:
        made.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nX-Request-Id: {name}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        yield made


@dataclass
class Size:
    """What the server's process takes."""

    rss_mib: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Size:
        process = psutil.Process(pid)
        return cls(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())


def soak(minutes: float, policy: str, rate_per_s: float, seed: int) -> dict[str, Any]:
    """Run, and count."""
    with tempfile.TemporaryDirectory() as place:
        site = Site(Path(place) / "site", Clients(ThreadPoolExecutor(512)))
        load = Load(site, rate_per_s, random.Random(seed))
        sizes: list[Size] = []
        try:
            with site.serving(CONFIG, "--emulate", "--policy", policy):
                assert site.server is not None
                pid = site.server.process.pid
                site.ask(MODELS[0]).result()
                sizes.append(Size.of(pid))
                looking = threading.Thread(target=_look, args=(pid, sizes, load.over))
                looking.start()
                load.run(60 * minutes)
                looking.join()
                site.settle()
                policy_faults = site.status()["policy_faults"]
                broken = [e for e in site.server.events if e["event"].endswith("-fault")]
            site.orphans += still_there(site.folder)
            missing = faults.unrecorded(site.folder, site.clients.names)
        finally:
            sweep(site.folder)
            site.clients.pool.shutdown(cancel_futures=True)
    tally = site.clients
    return {
        "minutes": minutes, "policy": policy, "seed": seed,
        "requests": sum(tally.outcomes.values()), "outcomes": dict(tally.outcomes),
        "told": dict(tally.told), "done": dict(load.done), "slowest_s": round(tally.slowest_s, 1),
        "lost": len(tally.lost), "unrecorded": len(missing), "orphans": len(site.orphans),
        "unaccounted_bytes": site.unaccounted_bytes,
        "policy_faults": policy_faults + len(broken),
        "rss_mib": [round(size.rss_mib, 1) for size in _quarters(sizes)],
        "files": [size.files for size in _quarters(sizes)],
        "threads": [size.threads for size in _quarters(sizes)],
        "why": [*tally.lost[:5], *missing[:5], *site.orphans[:5]],
    }  # fmt: skip


def _look(pid: int, sizes: list[Size], over: threading.Event) -> None:
    while not over.wait(5.0):
        sizes.append(Size.of(pid))
        if sys.stderr.isatty():
            print(f"\r\x1b[K{len(sizes) * 5} s", end="", file=sys.stderr, flush=True)


def _quarters(sizes: list[Size]) -> list[Size]:
    """At the start, at each quarter, and at the end."""
    return [sizes[round(k * (len(sizes) - 1) / 4)] for k in range(5)]


def main() -> int:
    """Run and print; 1 if anything was lost."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--policy", default="ilp:every_s=15")
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second [12]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    row = soak(options.minutes, options.policy, options.rate, options.seed)
    if options.json:
        print(json.dumps(row, indent=2))
    else:
        for key, value in row.items():
            print(f"{key:<20}{value}")
    wrong = ("lost", "unrecorded", "orphans", "unaccounted_bytes", "policy_faults")
    return int(any(row[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
