"""What accidents cost: each fault many times in turn, and what was lost by it.

    python benchmarks/faults.py [--fault gpu_lost ...] [--times 50] [--json]

Three models on two GPUs that hold one each; `testbed.py` says when a request counts as lost. After
each round the books are compared with the processes that run and the memory that they hold, and at
the end the journal with the requests that were sent.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from testbed import ANSWERED, CUT, PATIENCE_S, TOLD, WRONG, Testbed, progress, testbed

from tests.live.nvml import LOST, FakeDriver
from tests.live.running import still_there, until

CLIENTS = 64
REFUSED_S = 20.0
"""A second server has ended by then."""
SPEED = 50
STEP = {"kind": "generate", "kv_tokens": 10_000_000, "step": {"decode_c": 0.1}}
"""2 ms a token at that speed."""
ENGINE = {"engine": STEP, "max_model_len": 10_000_000}
NEVER_S = 1e8
POOL = "4GiB"
"""Of each copy: what the longest request would take has no room anywhere."""
LONG, ENDLESS = 300, 9_000_000
MODELS = ("llama-3.1-8b", "qwen2.5-7b", "mistral-7b")
ROOMY = {"kind": "h100-80g", "memory": "40GiB", "count": 2}
"""Two GPUs with room for one model each."""


def config(**more: Any) -> dict[str, Any]:
    """Three models on two GPUs, sections laid over that."""
    models = {name: {"kv": POOL, "settings": dict(ENGINE)} for name in MODELS}
    plain = {"cluster": {"gpus": [ROOMY]}, "models": models, "emulated": {"speed": SPEED}}
    live = {"retry_first": 0.1, "retry_most": 0.1, **more.pop("live", {})}
    return {**plain, "live": live, **more}


def loads_in(seconds: float) -> dict[str, Any]:
    """A model whose load takes so long, at the speed of real engines."""
    return {
        "kv": POOL,
        "settings": {**ENGINE, "stages": {"process": 0.0, "weights": seconds}},
    }


# The faults. Each is given a site and yields after each round.


def engine_killed(site: Testbed) -> Iterator[None]:
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


def running_at(site: Testbed, model: str) -> int:
    """Requests at the engines of a model."""
    return sum(one["running"] for one in site.instances() if one["model"] == model)


def executor_killed(site: Testbed) -> Iterator[None]:
    """While one model serves and one loads: the next start adopts the first, ends the other."""
    long_load = config()
    long_load["models"][MODELS[1]] = loads_in(NEVER_S)
    while True:
        with site.running(long_load, "--emulate") as server:
            site.ask(MODELS[0], recorded=False).result()
            pids = {one["pid"] for one in site.ready(MODELS[0])}
            cut = site.ask(MODELS[1], may=(CUT,), recorded=False)
            server.wait_for("progress", stage="weights")
            server.end(signal.SIGKILL)
        cut.result()
        with site.serving(config(), "--emulate"):
            site.must_run(pids)
            for asked in [site.ask(model) for model in MODELS[:2]]:
                asked.result()
            site.settle()
        site.orphans += still_there(site.folder)
        yield


def sigterm(site: Testbed) -> Iterator[None]:
    """Under load: what is in flight is answered; what comes later is told, or finds nobody."""
    while True:
        with site.running(config(), "--emulate") as server:
            site.ask(MODELS[0]).result()
            asked = [site.ask(MODELS[0], LONG * 5, stream=i % 2 == 0) for i in range(16)]
            until(lambda: running_at(site, MODELS[0]) == 16)
            server.send(signal.SIGTERM)
            late = [
                site.ask(MODELS[0], may=(ANSWERED, TOLD, CUT), recorded=False) for _ in range(4)
            ]
            for one in (*asked, *late):
                one.result()
            if code := server.process.wait(PATIENCE_S):
                site.clients.lost.append(f"the server ended with {code}")
        site.orphans += still_there(site.folder)
        yield


def engine_hangs(site: Testbed) -> Iterator[None]:
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


def load_fails(site: Testbed) -> Iterator[None]:
    """Once: the next try answers. As often as it is tried: told why, until an operator loads it."""
    tries = 2
    slow = config(live={"load_tries": tries, "retry_first": 0.1, "retry_most": 0.1})
    # Long enough to be killed in the middle.
    slow["models"][MODELS[0]] = loads_in(50.0)
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
            if fatal:
                site.act(MODELS[0], "load")
            site.ask(MODELS[0]).result()
            site.act(MODELS[0], "unload")
            site.settle()
            yield


def loading(site: Testbed) -> set[int]:
    """Processes of engines that are not up yet."""
    return set(site.processes()) - {one["pid"] for one in site.instances()}


def load_is_slow(site: Testbed) -> Iterator[None]:
    """Slower than its deadline: told why; another model is answered meanwhile."""
    late = config(live={"load_tries": 1, "load_deadline": 4.0, "forgive": 0.01})
    late["models"][MODELS[0]] = loads_in(NEVER_S)
    with site.serving(late, "--emulate"):
        while True:
            waiting = [site.ask(MODELS[0], may=(TOLD,)) for _ in range(3)]
            aside = [site.ask(MODELS[1]) for _ in range(3)]
            for asked in (*waiting, *aside):
                asked.result()
            site.settle()
            yield


def port_taken(site: Testbed) -> Iterator[None]:
    """A second server, on the same port or in the same folder, ends and disturbs nothing."""
    slow = config()
    slow["models"][MODELS[1]] = loads_in(50.0)
    with site.serving(slow, "--emulate"):
        for turn in itertools.count():
            site.ask(MODELS[0]).result()
            stream = site.ask(MODELS[0], LONG * 5, stream=True)
            load = site.ask(MODELS[1])
            port = str(urlsplit(site.url).port) if turn % 2 else "0"
            if words := start_again(site, port):
                site.clients.lost.append(words)
            for asked in (stream, load):
                asked.result()
            site.act(MODELS[1], "unload")
            site.settle()
            yield


def start_again(site: Testbed, port: str) -> str:
    """Start a second server; what is wrong with the way in which it is refused."""
    command = [sys.executable, "-m", "modelium", "run", "--emulate", "--port", port]
    with subprocess.Popen(
        command, cwd=site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MODELIUM_CONFIG": ""},
    ) as second:  # fmt: skip
        try:
            _, told = second.communicate(timeout=REFUSED_S)
        except subprocess.TimeoutExpired:
            second.terminate()
            return f"a second server ran on port {port}"
    one_line = second.returncode == 2 and len(told.splitlines()) == 1
    return "" if one_line else f"the second server ended with {second.returncode}: {told}"


def disk_full(site: Testbed) -> Iterator[None]:
    """What is ready answers; loads are told; what was not written is written later."""
    with site.serving(config(), "--emulate"):
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
            site.act(MODELS[1], "unload")
            site.settle()
            yield


def gpu_lost(site: Testbed) -> Iterator[None]:
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


def clock_step(site: Testbed) -> Iterator[None]:
    """An hour forward and an hour back, under load and across a restart: nothing happens."""
    site.folder.mkdir()
    (site.folder / "clock").mkdir()
    step = site.folder / "clock" / "step"
    (site.folder / "clock" / "sitecustomize.py").write_text(CLOCK.format(file=str(step)))
    env = {**os.environ, "PYTHONPATH": str(site.folder / "clock")}
    for turn in itertools.count():
        with site.running(config(), "--emulate", env=env) as server:
            site.ask(MODELS[0], recorded=False).result()
            pids = {one["pid"] for one in site.ready(MODELS[0])}
            asked = [site.ask(MODELS[0], LONG * 3, stream=i % 2 == 0, recorded=False)
                     for i in range(4)]  # fmt: skip
            step.write_text(str(3600.0 * (1 if turn % 2 else -1)))
            for one in asked:
                one.result()
            site.settle()
            if any(event["event"] == "lost" for event in server.events):
                site.clients.lost.append("an engine was lost by it")
            server.end(signal.SIGKILL)
        step.write_text(str(3600.0 * (-1 if turn % 2 else 1)))
        with site.serving(config(), "--emulate", env=env):
            site.must_run(pids)
            site.settle()
        step.write_text("0")
        site.orphans += still_there(site.folder)
        yield


def cold_crowd(site: Testbed) -> Iterator[None]:
    """Sixty clients on three models that are not loaded, with room for two."""
    with site.serving(config(), "--emulate"):
        while True:
            for asked in [site.ask(MODELS[i % 3], stream=i % 2 == 0) for i in range(60)]:
                asked.result()
            for model in MODELS:
                site.act(model, "unload")
            site.settle()
            yield


def never_reads(site: Testbed) -> Iterator[None]:
    """Five clients that read nothing of endless streams: others are served, and places are free
    again when they go."""
    with site.serving(config(), "--emulate"):
        while True:
            site.ask(MODELS[0]).result()
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(site.stream(MODELS[0], ENDLESS, buffer_bytes=4096))
                until(lambda: running_at(site, MODELS[0]) == 5)
                for asked in [site.ask(MODELS[0], stream=i % 2 == 0) for i in range(8)]:
                    asked.result()
            site.settle()
            yield


FAULTS: dict[str, Callable[[Testbed], Iterator[None]]] = {
    fault.__name__: fault
    for fault in (
        engine_killed, executor_killed, sigterm, engine_hangs, load_fails, load_is_slow, port_taken,
        disk_full, gpu_lost, clock_step, cold_crowd, never_reads,
    )
}  # fmt: skip


def measure(name: str, times: int) -> dict[str, Any]:
    """One row: a fault, so many times."""
    begun_s = time.monotonic()
    with testbed(CLIENTS) as site, contextlib.closing(FAULTS[name](site)) as rounds:
        for done in range(1, times + 1):
            next(rounds)
            progress(f"{name} {done}/{times}")
    took_s = round(time.monotonic() - begun_s, 1)
    plain = dict.fromkeys((ANSWERED, TOLD, CUT), 0)
    return {"fault": name, "times": times, "took_s": took_s, **plain, **site.result()}


COLUMNS = (
    "times", "requests", ANSWERED, TOLD, CUT, *WRONG, "slowest_s",
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
    return int(any(row[name] for row in rows for name in WRONG))


if __name__ == "__main__":
    sys.exit(main())
