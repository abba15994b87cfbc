"""The process of an emulated engine: `python -m modelium.managers.emulated.process --spec FILE`.

It takes the stages of its start the time they are said to take, then listens, and answers as vLLM
(OpenAI's API) or Triton (KServe v2) would, at its profile's pace. SIGTERM ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from modelium.errors import ConfigError
from modelium.managers.emulated.server.http import Connection
from modelium.managers.emulated.server.routes import Routes
from modelium.managers.emulated.server.spec import Spec, parse

SLOW_START = 1000.0
"""How many times as long the fault slow_start makes a start."""
SHARES = 20
"""Progress is told this often in each stage."""


def main(arguments: list[str] | None = None) -> int:
    """Run one engine until it is told to stop; return the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    try:
        spec = parse(json.loads(Path(options.spec).read_text(encoding="utf-8")))
        if spec.fault and not options.faults:
            raise ConfigError(f"fault {spec.fault!r} needs --faults")
    except (OSError, ValueError, ConfigError) as error:
        print(f"emulated engine: {options.spec}: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(spec, _teller(options.notify), faults=options.faults))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="emulated_server", description=__doc__)
    parser.add_argument(
        "--spec", required=True, help="JSON file; see modelium.managers.emulated.server"
    )
    parser.add_argument("--notify", type=int, help="file descriptor to write progress to")
    parser.add_argument("--faults", action="store_true", help="serve POST /faults, for tests")
    return parser.parse_args(arguments)


async def _serve(spec: Spec, tell: Callable[..., None], *, faults: bool) -> int:
    started_s = time.monotonic() - _age_s()
    for stage, seconds in spec.stages.items():
        slow = SLOW_START if spec.fault == "slow_start" else 1.0
        end_s = started_s + seconds * slow / spec.speed
        await _pass_stage(stage, end_s, tell)
        print(f"{stage} took {time.monotonic() - started_s:.3f} s", flush=True)
        started_s = time.monotonic()
        if failure := _failure(spec, stage):
            print(f"ERROR {failure}", flush=True)
            tell(failed=failure, out_of_memory=spec.fault == "out_of_memory")
            return 1
    routes = Routes(spec, asyncio.get_running_loop(), faults=faults)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: Connection(routes.handle), spec.host, spec.port, backlog=2048
        )
    except OSError as error:
        print(f"ERROR {error}", flush=True)
        tell(failed=f"{spec.host}:{spec.port}: {error.strerror or error}", out_of_memory=False)
        return 1
    port = server.sockets[0].getsockname()[1]
    print(f"{spec.model} ready on http://{spec.host}:{port}", flush=True)
    tell(port=port)
    async with server:
        await server.serve_forever()
    return 0


async def _pass_stage(stage: str, end_s: float, tell: Callable[..., None]) -> None:
    begin_s = time.monotonic()
    for step in range(SHARES):
        tell(stage=stage, share=step / SHARES)
        due_s = begin_s + (end_s - begin_s) * (step + 1) / SHARES
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


def _failure(spec: Spec, stage: str) -> str:
    last = list(spec.stages)[-1]
    if spec.fault == "fail_start" and stage == last:
        return "RuntimeError: Engine core initialization failed. (a fault that was asked for)"
    if spec.fault == "out_of_memory" and stage in ("weights", last):
        return "torch.OutOfMemoryError: CUDA out of memory. (a fault that was asked for)"
    return ""


def _teller(descriptor: int | None) -> Callable[..., None]:
    """A function that writes a line of JSON to whoever started this process, if still there."""

    def tell(**what: Any) -> None:
        nonlocal descriptor
        if descriptor is None:
            return
        try:
            os.write(descriptor, json.dumps(what).encode() + b"\n")
        except OSError:
            descriptor = None

    return tell


def _age_s() -> float:
    """Seconds since this process was created."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = int(fields[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
