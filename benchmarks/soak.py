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
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
from testbed import ANSWERED, LEFT, TOLD, WRONG, Testbed, progress, testbed

from modelium.client.client import ServerError

CLIENTS = 512
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
VERBS = ("load", "unload", "sleep", "wake", "pin", "unpin")
LOOK_EVERY_S = 5.0
SLOW_S = 8.0
"""A slow reader reads a byte now and then for so long."""


@dataclass
class Load:
    """Who asks, kills and calls, each by lots of its own."""

    bed: Testbed
    rate_per_s: float
    seed: int
    asked: list[Future[str]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    """What was done to the server; each key by one thread."""
    over: threading.Event = field(default_factory=threading.Event)

    def arrivals(self, rng: random.Random) -> None:
        """Requests at random times, none waiting for another."""
        while not self.over.wait(rng.expovariate(self.rate_per_s)):
            draw, model = rng.random(), rng.choices(MODELS, SHARES)[0]
            tokens, stream = rng.randrange(1, 200), rng.random() < 0.4
            if draw < 0.03:
                self.asked.append(self.bed.ask(NOBODY, may=(TOLD,), recorded=False))
            elif draw < 0.08:
                after_s = rng.uniform(0.0, 3.0)
                self.asked.append(self.bed.clients.pool.submit(self.leave, model, after_s))
            else:
                # A stream whose engine is killed is told so; a model may be unloaded by hand.
                self.asked.append(self.bed.ask(model, tokens, stream=stream, may=(ANSWERED, TOLD)))

    def leave(self, model: str, after_s: float) -> str:
        """A client that hangs up."""
        with self.bed.stream(model, 150):
            time.sleep(after_s)
        self.bed.clients.note(LEFT)
        return LEFT

    def slow_readers(self, rng: random.Random) -> None:
        """Clients that read a byte now and then, and go."""
        while not self.over.wait(SLOW_EVERY_S):
            with self.bed.stream(rng.choice(MODELS), 100_000) as slow:
                until_s = time.monotonic() + SLOW_S
                slow.settimeout(1.0)
                while time.monotonic() < until_s and not self.over.wait(0.2):
                    with contextlib.suppress(TimeoutError):
                        slow.recv(1)
            self.bed.clients.note(LEFT)
            self.done["slow readers"] += 1

    def killer(self, rng: random.Random) -> None:
        """SIGKILL to an engine, serving or loading."""
        while not self.over.wait(KILL_EVERY_S):
            if pids := self.bed.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(rng.choice(pids)).kill()
                    self.done["engines killed"] += 1

    def operator(self, rng: random.Random) -> None:
        """Calls by hand, some of them refused."""
        while not self.over.wait(OPERATE_EVERY_S):
            model, verb = rng.choice(MODELS), rng.choice(VERBS)
            self.operate(model, verb)
            if verb == "pin":
                self.operate(model, "unpin")

    def operate(self, model: str, verb: str) -> None:
        self.done["operator calls"] += 1
        try:
            self.bed.act(model, verb)
        except ServerError:
            self.done["operator calls refused"] += 1

    def run(self, seconds: float) -> None:
        """All at once, until the time is over; then wait for what is under way."""
        works: list[Callable[[random.Random], None]] = [
            self.arrivals, self.slow_readers, self.killer, self.operator,
        ]  # fmt: skip
        with ThreadPoolExecutor(len(works)) as pool:
            going = [
                pool.submit(work, random.Random(f"{work.__name__} {self.seed}")) for work in works
            ]
            try:
                time.sleep(seconds)
            finally:
                self.over.set()
            for work in going:
                work.result()
        for asked in self.asked:
            asked.result()


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
    sizes: list[Size] = []
    with testbed(CLIENTS) as bed:
        load = Load(bed, rate_per_s, seed)
        with bed.serving(CONFIG, "--emulate", "--policy", policy):
            pid = bed.server.process.pid
            bed.ask(MODELS[0]).result()
            sizes.append(Size.of(pid))
            looking = threading.Thread(target=_look, args=(pid, sizes, load.over))
            looking.start()
            load.run(60 * minutes)
            looking.join()
            sizes.append(Size.of(pid))
            bed.settle()
            policy_faults = bed.status()["policy_faults"]
            broken = [e for e in bed.server.events if e["event"].endswith("-fault")]
    points = [sizes[round(k * (len(sizes) - 1) / 4)] for k in range(5)]
    return {
        "minutes": minutes, "policy": policy, "seed": seed, **bed.result(),
        "told_statuses": dict(bed.clients.told), "done": dict(load.done),
        "policy_faults": policy_faults + len(broken),
        "rss_mib": [round(size.rss_mib, 1) for size in points],
        "files": [size.files for size in points], "threads": [size.threads for size in points],
    }  # fmt: skip


def _look(pid: int, sizes: list[Size], over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        sizes.append(Size.of(pid))
        progress(f"{len(sizes) * LOOK_EVERY_S:g} s")


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
        print(json.dumps([row], indent=2))
    else:
        for key, value in row.items():
            print(f"{key:<20}{value}")
    return int(any(row[name] for name in (*WRONG, "policy_faults")))


if __name__ == "__main__":
    sys.exit(main())
