"""What accidents cost: each fault many times in turn, and what was lost by it.

    python benchmarks/faults.py [--fault gpu_lost ...] [--times 50] [--json]

`modelium run` with emulated engines runs in its own process; this process is the clients, the
operator and the accident. Every request has a name of its own, and is *answered* whole, *told* in
clear words that it failed, or *cut* off. What it may be is stated where it is sent; all else counts
as lost. After each round the books are compared with the processes that run and the memory that
they hold, and at the end the journal with the requests that were sent.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.live.nvml import LOST, FakeDriver
from tests.live.running import Running, left_behind, running, still_there, sweep, until

ANSWERED, TOLD, CUT = "answered", "told", "cut"
CLIENTS = 64
PATIENCE_S = 120.0
"""A client that has heard nothing for this long says that its request is lost."""
REFUSED_S = 20.0
LOOKED_S = 5.0
"""By then the memory of GPUs has been read again."""
SPEED = 50
STEP = {"kind": "generate", "kv_tokens": 10_000_000, "step": {"decode_c": 0.1}}
"""2 ms a token at that speed."""
ENGINE = {"engine": STEP, "max_model_len": 10_000_000}
POOL = "4GiB"
"""Of each copy: what the longest request would take has no room anywhere."""
SHORT, LONG, ENDLESS = 20, 300, 9_000_000
MODELS = ("llama-3.1-8b", "qwen2.5-7b", "mistral-7b")
ROOMY = {"kind": "h100-80g", "memory": "40GiB", "count": 2}
"""Two GPUs with room for one model each."""


def config(**more: Any) -> dict[str, Any]:
    """Three models on two GPUs, sections laid over that."""
    models = {name: {"kv": POOL, "settings": dict(ENGINE)} for name in MODELS}
    plain = {"cluster": {"gpus": [ROOMY]}, "models": models, "emulated": {"speed": SPEED}}
    live = {"retry_first": 0.1, "retry_most": 0.1, **more.pop("live", {})}
    return {**plain, "live": live, **more}


@dataclass
class Clients:
    """All who ask, and what became of it."""

    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CLIENTS))
    outcomes: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """Statuses of the answers that told of a failure."""
    lost: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def ask(
        self, url: str, model: str, tokens: int = SHORT, *, stream: bool = False,
        may: tuple[str, ...] = (ANSWERED,), recorded: bool = True,
        begun: threading.Event | None = None,
    ) -> Future[str]:  # fmt: skip
        """Send a request; the outcome is in the tally before the future has it.

        `begun` happens with the first piece of a stream.
        """
        name = f"r{next(self.numbers)}"
        if recorded:
            self.names.append(name)

        def work() -> str:
            begun_s = time.monotonic()
            outcome, words = send(url, model, tokens, stream, name, begun or threading.Event())
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
            self.outcomes[outcome] += 1
            if outcome == TOLD:
                self.told[words[:3]] += 1
            if outcome not in may:
                self.lost.append(f"{name} of {model} was {outcome}: {words}")
            return outcome

        return self.pool.submit(work)


def send(
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
class Site:
    """One fault's place: a folder, its server, its clients, and what was found wrong."""

    folder: Path
    clients: Clients
    orphans: list[str] = field(default_factory=list)
    unaccounted_bytes: int = 0
    server: Running | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def ask(self, model: str, tokens: int = SHORT, **more: Any) -> Future[str]:
        return self.clients.ask(self.url, model, tokens, **more)

    def status(self) -> dict[str, Any]:
        assert self.server is not None
        return self.server.client.status()

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
    def serving(self, what: Mapping[str, Any], *options: str, **more: Any) -> Iterator[None]:
        """A server from its start to its orderly end."""
        self.folder.mkdir(exist_ok=True)
        with running(self.folder, what, *options, **more) as self.server:
            yield
            self.server.end()
        self.server = None

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
        self.orphans += [f"process {pid}" for pid in engines(self.folder) if pid not in pids]


def unaccounted_bytes(status: Mapping[str, Any]) -> int:
    """What books, instances and the memory that was seen differ by."""
    gap = 0
    for gpu in status["gpus"]:
        held = sum(one["bytes_per_gpu"] for one in gpu["instances"])
        seen = gpu["used_bytes"] if status["pretend_gpus"] else held
        gap += abs(gpu["booked_bytes"] - held) + abs(seen - held)
    return gap


def engines(folder: Path) -> list[int]:
    """Processes of engines that this folder's servers have started."""
    return [pid for pid in left_behind(folder) if os.getsid(pid) == pid]


# The faults. Each is given a site and yields after each round.


def engine_killed(site: Site) -> Iterator[None]:
    """A stream under way is told; what has no answer yet goes to the next engine."""
    busy, other = MODELS[:2]
    with site.serving(config(), "--emulate"):
        while True:
            site.ask(other).result()
            site.ask(busy).result()
            begun = threading.Event()  # before its first piece it would be sent again
            stream = site.ask(busy, ENDLESS, stream=True, may=(TOLD,), begun=begun)
            whole = [site.ask(busy, LONG) for _ in range(4)]
            begun.wait(PATIENCE_S)
            until(lambda: running_at(site, busy) == 5)
            site.signal(busy, signal.SIGKILL)
            aside = site.ask(other)
            for asked in (stream, aside, *whole):
                asked.result()
            site.settle()
            yield


def running_at(site: Site, model: str) -> int:
    """Requests at the engines of a model."""
    return sum(one["running"] for one in site.instances() if one["model"] == model)


def executor_killed(site: Site) -> Iterator[None]:
    """While one model serves and one loads: the next start adopts the first, ends the other."""
    long_load = config()
    stages = {"process": 0.0, "weights": 1e8}
    long_load["models"][MODELS[1]] = {"kv": POOL, "settings": {**ENGINE, "stages": stages}}
    while True:
        with contextlib.ExitStack() as stack:
            stack.enter_context(killed_at_the_end(site, long_load))
            site.ask(MODELS[0], recorded=False).result()
            pids = {one["pid"] for one in site.ready(MODELS[0])}
            cut = site.ask(MODELS[1], may=(CUT,), recorded=False)
            assert site.server is not None
            site.server.wait_for("progress", stage="weights")
        cut.result()
        with site.serving(config(), "--emulate"):
            site.must_run(pids)
            for asked in [site.ask(model) for model in MODELS[:2]]:
                asked.result()
            site.settle()
        site.orphans += still_there(site.folder)
        yield


@contextmanager
def killed_at_the_end(site: Site, what: Mapping[str, Any]) -> Iterator[None]:
    with running(site.folder, what, "--emulate") as site.server:
        yield
        site.server.end(signal.SIGKILL)


def sigterm(site: Site) -> Iterator[None]:
    """Under load: what is in flight is answered; what comes later is told, or finds nobody."""
    while True:
        with running(site.folder, config(), "--emulate") as site.server:
            site.ask(MODELS[0]).result()
            asked = [site.ask(MODELS[0], LONG * 5, stream=i % 2 == 0) for i in range(16)]
            until(lambda: running_at(site, MODELS[0]) == 16)
            site.server.send(signal.SIGTERM)
            late = [
                site.ask(MODELS[0], may=(ANSWERED, TOLD, CUT), recorded=False) for _ in range(4)
            ]
            for one in (*asked, *late):
                one.result()
            if site.server.process.wait(PATIENCE_S):
                site.orphans.append(f"exit code {site.server.process.returncode}")
        site.orphans += still_there(site.folder)
        yield


def engine_hangs(site: Site) -> Iterator[None]:
    """It is found, and what it owed is answered by the next; another model is not disturbed."""
    quick = config(live={"probe_every": 0.5, "stall": 1.0, "stop_grace": 0.5})
    with site.serving(quick, "--emulate"):
        while True:
            site.ask(MODELS[1]).result()
            site.ask(MODELS[0]).result()
            site.signal(MODELS[0], signal.SIGSTOP)
            for asked in [*(site.ask(MODELS[0]) for _ in range(3)), site.ask(MODELS[1])]:
                asked.result()
            site.settle()
            yield


def load_fails(site: Site) -> Iterator[None]:
    """Once: the next try answers. As often as it is tried: told why, until an operator loads it."""
    tries = 2
    slow = config(live={"load_tries": tries, "retry_first": 0.1, "retry_most": 0.1})
    # Long enough to be killed in the middle.
    slow["models"][MODELS[0]] = {
        "kv": POOL,
        "settings": {**ENGINE, "stages": {"process": 0.0, "weights": 50.0}},
    }
    with site.serving(slow, "--emulate"):
        for turn in itertools.count():
            fatal = turn % 2 == 1
            waiting = [site.ask(MODELS[0], may=(TOLD,) if fatal else (ANSWERED,)) for _ in range(4)]
            seen: set[int] = set()
            for _ in range(tries if fatal else 1):
                [pid] = until(lambda seen=seen: loading(site) - seen)
                seen.add(pid)
                os.killpg(pid, signal.SIGKILL)
            for asked in waiting:
                asked.result()
            assert site.server is not None
            if fatal:
                site.server.client.act(MODELS[0], "load")
            site.ask(MODELS[0]).result()
            site.server.client.act(MODELS[0], "unload")
            site.settle()
            yield


def loading(site: Site) -> set[int]:
    """Processes of engines that are not up yet."""
    return set(engines(site.folder)) - {one["pid"] for one in site.instances()}


def load_is_slow(site: Site) -> Iterator[None]:
    """Slower than its deadline: told why; another model is answered meanwhile."""
    late = config(live={"load_tries": 1, "load_deadline": 4.0, "forgive": 0.01})
    late["models"][MODELS[0]] = {
        "kv": POOL,
        "settings": {**ENGINE, "stages": {"process": 0.0, "weights": 1e8}},
    }
    with site.serving(late, "--emulate"):
        while True:
            waiting = [site.ask(MODELS[0], may=(TOLD,)) for _ in range(3)]
            aside = [site.ask(MODELS[1]) for _ in range(3)]
            for asked in (*waiting, *aside):
                asked.result()
            site.settle()
            yield


def port_taken(site: Site) -> Iterator[None]:
    """A second server, on the same port or in the same folder, ends and disturbs nothing."""
    slow = config()
    slow["models"][MODELS[1]] = {
        "kv": POOL,
        "settings": {**ENGINE, "stages": {"process": 0.0, "weights": 50.0}},
    }
    with site.serving(slow, "--emulate"):
        assert site.server is not None
        for turn in itertools.count():
            site.ask(MODELS[0]).result()
            stream = site.ask(MODELS[0], LONG * 5, stream=True)
            load = site.ask(MODELS[1])
            port = str(urlsplit(site.url).port) if turn % 2 else "0"
            if words := start_again(site.folder, port):
                site.clients.lost.append(words)
            for asked in (stream, load):
                asked.result()
            site.server.client.act(MODELS[1], "unload")
            site.settle()
            yield


def start_again(folder: Path, port: str) -> str:
    """Start a second server; what is wrong with the way in which it is refused."""
    command = [sys.executable, "-m", "modelium", "run", "--emulate", "--port", port]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MODELIUM_CONFIG": ""},
    ) as second:  # fmt: skip
        try:
            _, told = second.communicate(timeout=REFUSED_S)
        except subprocess.TimeoutExpired:
            second.terminate()
            return f"a second server ran on port {port}"
    one_line = second.returncode == 2 and len(told.splitlines()) == 1
    return "" if one_line else f"the second server ended with {second.returncode}: {told}"


def disk_full(site: Site) -> Iterator[None]:
    """What is ready answers; loads are told; what was not written is written later."""
    with site.serving(config(), "--emulate"):
        assert site.server is not None
        pid = site.server.process.pid
        while True:
            site.ask(MODELS[0]).result()
            whole = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, whole[1]))
            try:
                asked = [site.ask(MODELS[0]) for _ in range(8)]
                asked.append(site.ask(MODELS[1], may=(TOLD,)))
                for one in asked:
                    one.result()
            finally:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, whole)
            site.ask(MODELS[1]).result()
            site.server.client.act(MODELS[1], "unload")
            site.settle()
            yield


def gpu_lost(site: Site) -> Iterator[None]:
    """Its models are loaded on the other one; streams are told; it is taken back."""
    site.folder.mkdir()
    driver = FakeDriver(site.folder, *["NVIDIA H100 80GB HBM3"] * 2)
    real = config()
    del real["cluster"]
    for entry in real["models"].values():
        entry["runtime"] = "emulated"
    with site.serving(real, env=driver.environment):
        while True:
            site.ask(MODELS[0]).result()
            stream = site.ask(MODELS[0], LONG * 5, stream=True, may=(ANSWERED, TOLD))
            whole = [site.ask(MODELS[0], LONG * 5) for _ in range(3)]
            until(lambda: running_at(site, MODELS[0]) == 4)
            number = int(site.ready(MODELS[0])[0]["gpus"][0].removeprefix("gpu"))
            driver.status[number] = LOST
            driver.write()
            for asked in (stream, *whole):
                asked.result()
            driver.status[number] = 0
            driver.write()
            until(lambda number=number: not site.status()["gpus"][number]["lost"])
            site.settle()
            yield


CLOCK = """
import psutil, time
from pathlib import Path
_time, _boot = time.time, psutil.boot_time

def step():
    try:
        return float(Path({file!r}).read_text())
    except (OSError, ValueError):
        return 0.0

time.time = lambda: _time() + step()
psutil.boot_time = psutil._psplatform.boot_time = lambda: _boot() + step()
"""
"""What a step of the wall clock does to a Python process: its time, and the kernel's boot time."""


def clock_step(site: Site) -> Iterator[None]:
    """An hour forward and an hour back, under load and across a restart: nothing happens."""
    site.folder.mkdir()
    (site.folder / "clock").mkdir()
    step = site.folder / "clock" / "step"
    (site.folder / "clock" / "sitecustomize.py").write_text(CLOCK.format(file=str(step)))
    env = {**os.environ, "PYTHONPATH": str(site.folder / "clock")}
    for turn in itertools.count():
        with running(site.folder, config(), "--emulate", env=env) as site.server:
            site.ask(MODELS[0], recorded=False).result()
            pids = {one["pid"] for one in site.ready(MODELS[0])}
            asked = [site.ask(MODELS[0], LONG * 3, stream=i % 2 == 0, recorded=False)
                     for i in range(4)]  # fmt: skip
            step.write_text(str(3600.0 * (1 if turn % 2 else -1)))
            for one in asked:
                one.result()
            site.settle()
            if any(event["event"] == "lost" for event in site.server.events):
                site.clients.lost.append("an engine was lost by it")
            site.server.end(signal.SIGKILL)
        step.write_text(str(3600.0 * (-1 if turn % 2 else 1)))
        with site.serving(config(), "--emulate", env=env):
            site.must_run(pids)
            site.settle()
        step.write_text("0")
        site.orphans += still_there(site.folder)
        yield


def cold_crowd(site: Site) -> Iterator[None]:
    """Sixty clients on three models that are not loaded, with room for two."""
    with site.serving(config(), "--emulate"):
        assert site.server is not None
        while True:
            for asked in [site.ask(MODELS[i % 3], stream=i % 2 == 0) for i in range(60)]:
                asked.result()
            for model in MODELS:
                site.server.client.act(model, "unload")
            site.settle()
            yield


def never_reads(site: Site) -> Iterator[None]:
    """Five clients that read nothing of endless streams: others are served, and places are free
    again when they go."""
    with site.serving(config(), "--emulate"):
        while True:
            site.ask(MODELS[0]).result()
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(unread(site))
                until(lambda: running_at(site, MODELS[0]) == 5)
                for asked in [site.ask(MODELS[0], stream=i % 2 == 0) for i in range(8)]:
                    asked.result()
            site.settle()
            yield


@contextmanager
def unread(site: Site) -> Iterator[None]:
    """A stream that its client never reads."""
    name = f"r{next(site.clients.numbers)}"
    site.clients.names.append(name)
    where = urlsplit(site.url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((where.hostname, where.port))
        body = json.dumps(
            {"model": MODELS[0], "prompt": "x", "max_tokens": ENDLESS, "stream": True}
        )
        line.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nX-Request-Id: {name}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        yield


FAULTS: dict[str, Callable[[Site], Iterator[None]]] = {
    fault.__name__: fault
    for fault in (
        engine_killed, executor_killed, sigterm, engine_hangs, load_fails, load_is_slow, port_taken,
        disk_full, gpu_lost, clock_step, cold_crowd, never_reads,
    )
}  # fmt: skip


def unrecorded(folder: Path, names: list[str]) -> list[str]:
    """Requests of which the journal knows nothing."""
    with contextlib.closing(sqlite3.connect(folder / ".modelium" / "journal.db")) as db:
        known = {name for (name,) in db.execute("SELECT id FROM requests")}
    return [name for name in names if name not in known]


def measure(name: str, times: int) -> dict[str, Any]:
    """One row: a fault, so many times."""
    with tempfile.TemporaryDirectory() as place:
        site = Site(Path(place) / "site", Clients())
        begun_s = time.monotonic()
        try:
            rounds = FAULTS[name](site)
            for done, _ in enumerate(rounds, 1):
                progress(f"{name} {done}/{times}")
                if done == times:
                    break
            rounds.close()  # type: ignore[attr-defined]  # a generator: its server ends
            site.orphans += still_there(site.folder)
            missing = unrecorded(site.folder, site.clients.names)
        finally:
            sweep(site.folder)
            site.clients.pool.shutdown(cancel_futures=True)
            progress("")
    tally = site.clients
    return {
        "fault": name, "times": times, "requests": sum(tally.outcomes.values()),
        **{outcome: tally.outcomes[outcome] for outcome in (ANSWERED, TOLD, CUT)},
        "lost": len(tally.lost), "unrecorded": len(missing), "orphans": len(site.orphans),
        "unaccounted_bytes": site.unaccounted_bytes, "slowest_s": round(tally.slowest_s, 2),
        "took_s": round(time.monotonic() - begun_s, 1),
        "why": [*tally.lost[:5], *missing[:5], *site.orphans[:5]],
    }  # fmt: skip


def progress(words: str) -> None:
    """On a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)


COLUMNS = (
    "times", "requests", ANSWERED, TOLD, CUT, "lost", "unrecorded", "orphans", "unaccounted_bytes",
    "slowest_s",
)  # fmt: skip


def main() -> int:
    """Run and print; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fault", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=50, help="rounds of each [50]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print(f"{'fault':<16}" + "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS))
    for name in options.fault:
        rows.append(row := measure(name, options.times))
        if not options.json:
            cells = "".join(f"{row[name]:>{len(name) + 2},}" for name in COLUMNS)
            print(f"{row['fault']:<16}{cells}", *row["why"], sep="\n  ", flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))
    wrong = ("lost", "unrecorded", "orphans", "unaccounted_bytes")
    return int(any(row[name] for row in rows for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
