"""What the gateway costs: latency against the engine directly, throughput, streams, memory.

    python benchmarks/gateway.py [--work latency ...] [--seconds 10] [--minutes 10] [--json]

`modelium run` with emulated engines in its own process, an engine in another, and this process as
all the clients; they share the machine's cores, and figures per CPU second of the gateway say what
it could do with a core of its own. Latency is measured in turns, directly and through the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
import yaml
from load import Timed, clock, closed, lines, opened, request

from modelium.client.client import Client

TOKENS, LONG, STREAMS = 4, 500, 500
SLOWNESS = 0.3
"""Speed of the engine that 500 streams share: a step of it takes some 50 ms."""
RATE_PER_S = 200.0
CLIENTS = 32
Row = dict[str, Any]

CONFIG: dict[str, Any] = {
    "cluster": {"gpus": "2xh100-80g"},
    "metrics": {"enabled": False},
    "gateway": {"places": STREAMS},
    "emulated": {"speed": 1000},
    "models": {
        "fast": {"catalogue": "llama-3.1-8b", "settings": {"speed": "inf"}},
        "steady": {
            "catalogue": "llama-3.1-8b",
            "load": {"process": 0, "compile": 0, "first_compile": 0, "profile": 0, "graphs": 0},
            "vllm": {"max_num_seqs": STREAMS},
            "settings": {"speed": SLOWNESS},
        },
    },
}


@dataclass
class Bench:
    """A running gateway and how to ask it."""

    url: str
    gateway: psutil.Process
    engines: dict[str, str]
    """URL of each model's engine."""
    seconds: float
    minutes: float

    def ask(self, model: str, tokens: int, *, stream: bool = False, direct: bool = False) -> bytes:
        """The bytes of a completion request."""
        url = self.engines[model] if direct else self.url
        body = {"model": model, "prompt": "hello", "max_tokens": tokens, "stream": stream}
        return request(url, "/v1/completions", body)

    def cpu_s(self) -> float:
        """CPU seconds of the gateway so far."""
        times = self.gateway.cpu_times()
        return float(times.user + times.system)


def good(answers: list[Timed]) -> list[Timed]:
    """Nobody may have been failed."""
    bad = [answer for answer in answers if answer.status != 200 or not answer.whole]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(answers)} answers failed, the first: {bad[0]}")
    return answers


async def latency(bench: Bench) -> Iterator[Row]:
    """Added by the gateway at 200 requests/s, to whole answers and to the first piece."""
    rows: list[Row] = []
    for stream in (False, True):
        took: dict[bool, list[float]] = {True: [], False: []}
        blocks = max(2, round(bench.seconds / 5))
        for block, direct in itertools.product(range(blocks), (True, False)):
            url = bench.engines["fast"] if direct else bench.url
            raw = bench.ask("fast", TOKENS, stream=stream, direct=direct)
            answers = good(await opened(url, raw, RATE_PER_S, 5.0, seed=block))
            took[direct] += [a.first_s if stream else a.end_s for a in answers]
        name = "to the first piece" if stream else "to the whole answer"
        for q, most in ((50, 2.0), (99, 10.0)):
            there, here = (1000 * float(np.percentile(took[direct], q)) for direct in (True, False))
            note = f"{here:.2f} through it, {there:.2f} directly, {len(took[False])} requests each"
            rows.append(row(f"added {name}, p{q}", here - there, "ms", note, most=most))
    return iter(rows)


async def small(bench: Bench) -> Iterator[Row]:
    """Small requests a second."""
    cpu_s, begun_s = bench.cpu_s(), clock()
    raw = bench.ask("fast", TOKENS)
    answers = good(await closed(bench.url, raw, CLIENTS, bench.seconds))
    return rates("requests", len(answers), clock() - begun_s, bench.cpu_s() - cpu_s, 1500)


async def chunks(bench: Bench) -> Iterator[Row]:
    """Streamed pieces a second."""
    cpu_s, begun_s = bench.cpu_s(), clock()
    raw = bench.ask("fast", LONG, stream=True)
    answers = good(await closed(bench.url, raw, CLIENTS, bench.seconds))
    count = len(answers) * LONG
    return rates("streamed chunks", count, clock() - begun_s, bench.cpu_s() - cpu_s, 20_000)


def rates(what: str, count: int, wall_s: float, cpu_s: float, least: float) -> Iterator[Row]:
    """Per second, and per CPU second of the gateway."""
    note = f"{CLIENTS} clients; the gateway had {cpu_s / wall_s:.0%} of a core"
    yield row(f"{what} a second", count / wall_s, "/s", note, least=least)
    yield row(f"{what} a CPU second", count / cpu_s, "/s", "of the gateway", least=least)


async def streams(bench: Bench) -> Iterator[Row]:
    """500 streams at once, directly and through the gateway."""
    tokens, gap_s, most = 200, {}, 0

    async def look() -> None:
        nonlocal most
        while True:
            status = await asyncio.to_thread(Client(bench.url).status)
            most = max(most, status["running"])
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    for direct, url in ((True, bench.engines["steady"]), (False, bench.url)):
        raw = bench.ask("steady", tokens, stream=True, direct=direct)
        cpu_s, begun_s = bench.cpu_s(), clock()
        async with lines(url, STREAMS) as made:
            answers = good(list(await asyncio.gather(*(line.ask(raw) for line in made))))
        wall_s, used_s = clock() - begun_s, bench.cpu_s() - cpu_s
        gaps = [(a.end_s - a.first_s) / (tokens - 1) for a in answers]
        gap_s[direct] = float(np.mean(gaps))
    looking.cancel()
    rate = f"{len(answers) * tokens / wall_s:,.0f} chunks/s with {used_s / wall_s:.0%} of a core"
    note = f"{1000 * gap_s[False]:.1f} ms through it, {1000 * gap_s[True]:.1f} directly"
    return iter([
        row("streams at once", most, "", f"{len(answers)} whole; {rate}", least=STREAMS),
        row("time between their pieces", gap_s[False] / gap_s[True], "x", note, most=1.2),
    ])  # fmt: skip


async def memory(bench: Bench) -> Iterator[Row]:
    """Resident memory under a steady mix: requests, streams and clients that leave."""
    seconds = 60 * bench.minutes
    samples: list[tuple[float, int]] = []
    begun_s = clock()

    async def look() -> None:
        while True:
            samples.append((clock() - begun_s, bench.gateway.memory_info().rss))
            await asyncio.sleep(1.0)

    async def leave() -> None:
        """A client that hangs up in the middle, ten times a second."""
        raw = bench.ask("fast", LONG, stream=True)
        while clock() < begun_s + seconds:
            async with lines(bench.url, 1) as [line]:
                asking = asyncio.create_task(line.ask(raw))
                await asyncio.sleep(0.1)
            await asking

    looking = asyncio.create_task(look())
    whole, stream = bench.ask("fast", TOKENS), bench.ask("fast", LONG, stream=True)
    answered = await asyncio.gather(
        opened(bench.url, whole, 50.0, seconds, seed=1),
        opened(bench.url, stream, 5.0, seconds, seed=2),
        leave(),
    )
    looking.cancel()
    settled = np.array([sample for sample in samples if sample[0] > seconds / 5])
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 60 / (1 << 20)
    now, note = settled[-1, 1] / (1 << 20), f"over the last four fifths of {bench.minutes:g} min"
    fifths = np.array_split(settled[:, 1] / (1 << 20), 4)
    curve = ", ".join(f"{part.mean():.1f}" for part in fifths)
    count = sum(len(good(answers)) for answers in answered[:2])
    return iter([
        row("memory at the end", now, "MiB", f"{count:,} requests; by fifths {curve}"),
        row("memory grows by", slope, "MiB/min", note, most=1.0),
    ])  # fmt: skip


WORKS: dict[str, Callable[[Bench], Coroutine[Any, Any, Iterator[Row]]]] = {
    "latency": latency, "small": small, "chunks": chunks, "streams": streams, "memory": memory,
}  # fmt: skip


def row(
    what: str, value: float, unit: str, note: str, *, least: float | None = None,
    most: float | None = None,
) -> Row:  # fmt: skip
    """One line of the table, with what it should be at least or at most."""
    return {"what": what, "value": value, "unit": unit, "least": least, "most": most, "note": note}


@contextmanager
def running(seconds: float, minutes: float) -> Iterator[Bench]:
    """The gateway's process; both models are loaded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "modelium.yaml").write_text(yaml.safe_dump(CONFIG))
        command = [sys.executable, "-m", "modelium", "run", "--emulate", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--log-format", "json"], cwd=folder, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "MODELIUM_CONFIG": ""},
        )  # fmt: skip
        client = Client(_address(process))
        try:
            for model in CONFIG["models"]:
                client.act(model, "load")
            engines = {one["name"]: one["instances"][0]["url"] for one in client.models()}
            yield Bench(client.url, psutil.Process(process.pid), engines, seconds, minutes)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _address(process: subprocess.Popen[str]) -> str:
    """What the gateway says that it serves on; the rest of what it says is read and dropped."""
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if told["event"] == "serving":
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return str(told["url"])
    raise SystemExit("the gateway did not start")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each work [10]")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the work memory [1]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows: list[Row] = []
    with (
        running(options.seconds, options.minutes) as bench,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        for work in options.work:
            for one in runner.run(WORKS[work](bench)):
                rows.append(one)
                if not options.json:
                    print(as_text(one), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


def as_text(one: Row) -> str:
    """One line of the table."""
    least, most = one["least"], one["most"]
    wanted = f">= {least:,.5g}" if least is not None else f"<= {most:,.5g}" if most else ""
    value = f"{one['value']:,.2f}" if abs(one["value"]) < 100 else f"{one['value']:,.0f}"
    return f"{one['what']:<36}{value:>10} {one['unit']:<8}{wanted:<12}{one['note']}"


if __name__ == "__main__":
    main()
