"""How fast the simulator is: requests per CPU second, and memory, on stated work.

    python benchmarks/engine.py [WORK ...] [--json] [--scale 1.0]

Each work runs in a process of its own, once to compile and cache the kernels and once measured.
The first, `yardstick`, is no work of the simulator's: it tells how fast the machine is just now.
CPU seconds include children; peak memory is the process's. Files are made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simpy

from modelium.control.costs import ConfiguredFacts, Stages
from modelium.core import Gpu, Model, Node, Slo
from modelium.sim import SimInput, simulate
from modelium.sim.spec import Generate, Infer, Settings, StepTime
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import GIB

ROOT = Path(__file__).resolve().parents[1]
VIDUR = ROOT / "../shared/cases/vidur_llama2_7b_a100_10k"

STEP = StepTime(6e-3, 1e-5, 2e-5, 64, 3e-8, 8e-3, 2e-5, 4e-5, 256, mixed_kv=3e-8, mixed_sq=1e-10)
"""Of the order of an 8B model on an H100; the speed does not depend on the figures."""


def zipf_trace(
    n: int, models: int, rate_per_s: float, seed: int = 1, exponent: float = 1.0
) -> Trace:
    """Poisson arrivals, Zipf popularity, lognormal-like lengths."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, models + 1) ** exponent
    codes = rng.choice(models, n, p=shares / shares.sum()).astype(np.int32)
    prompt = np.clip(rng.lognormal(6.0, 1.0, n), 1, 4000).astype(np.int32)
    output = np.clip(rng.lognormal(4.5, 1.0, n), 1, 1000).astype(np.int32)
    names = tuple(f"model-{k:03d}" for k in range(models))
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_per_s, n))
    return Trace(arrival_s, Labels(codes, names), prompt, output, source="zipf")


def vidur(scale: float) -> Callable[[], int]:
    """The Vidur case's requests on one engine, from the columns in memory to percentiles."""
    from modelium.sim.fit.tables import column, read_csv
    from modelium.sim.kernel.generate import run_engine

    file = VIDUR / "requests.csv"
    rows = read_csv(file)
    arrival, prompt, output = (
        column(rows, name, file) for name in ("arrival_s", "prompt_tokens", "output_tokens")
    )
    spec = Generate(STEP, 118_784, max_num_seqs=128, max_batched_tokens=512)
    prompt, output = prompt.astype(np.int32), output.astype(np.int32)

    def work() -> int:
        columns = run_engine(spec, arrival, prompt, output)
        e2e, ttft = columns.finish_s - arrival, columns.first_s - arrival
        tpot = (columns.finish_s - columns.first_s) / np.maximum(output - 1, 1)
        for values in (ttft, tpot, e2e):
            np.percentile(values, (50, 90, 99))
        return len(arrival)

    return work


def alpaserve(scale: float) -> Callable[[], int]:
    """32 models replicated on 16 GPUs by a static placement, batches of one, request records."""
    n = int(1_000_000 * scale)
    trace = zipf_trace(n, 32, 96.0)
    gpus = [Gpu(f"gpu{k}", "node0", 12 * GIB, "v100") for k in range(16)]
    given = SimInput(
        nodes=[Node("node0")],
        gpus=gpus,
        models=[Model(name, 2 * GIB, slo=Slo(e2e_s=0.5)) for name in trace.model.names],
        engines=lambda model, kind: Infer(((0.0999,),)),
        work=lambda model, kind, prompt, output: 0.1,
        settings=Settings(router="shortest_queue"),
    )
    from modelium.policies.static import Static

    names = trace.model.names
    placement = {
        name: [(f"gpu{(k + j * 5) % 16}",) for j in range(3)] for k, name in enumerate(names)
    }

    def work() -> int:
        run = simulate(given, Static(placement), trace)
        return int(run.summary["requests"]["completed"])

    return work


def churn(scale: float) -> Callable[[], int]:
    """300 models, Zipf(1.15), 20 requests/s, 256 fit on 64 GPUs; lru; Parquet in, folder out.

    About 23 loads per 1,000 requests, each with its eviction once the cluster is full.
    """
    from modelium.traces import read_trace, write_trace

    n = int(1_000_000 * scale)
    folder = Path(tempfile.mkdtemp())
    write_trace(zipf_trace(n, 300, 20.0, exponent=1.15), folder / "trace.parquet")

    def work() -> int:
        from modelium.policies.lru import Lru

        trace = read_trace(folder / "trace.parquet")
        run = simulate(_churn_world(trace.model.names), Lru(), trace)
        run.write(folder / "out", replace=True)
        print(f"loads {run.summary['loads']:,}", file=sys.stderr)
        return len(trace)

    return work


def _churn_world(names: tuple[str, ...]) -> SimInput:
    return SimInput(
        nodes=[Node(f"node{k}", 1024 * GIB) for k in range(8)],
        gpus=[Gpu(f"gpu{k:02d}", f"node{k // 8}", 72 * GIB, "h100-80g") for k in range(64)],
        models=[Model(name, 6 * GIB, 8 * GIB, 65536, 2 * GIB, slo=Slo(2.0, 0.1)) for name in names],
        engines=lambda model, kind: Generate(STEP, 131072),
        work=lambda model, kind, prompt, output: 0.1,
        facts=ConfiguredFacts(default_stages=Stages()),
    )


def report(scale: float, *more: str) -> Callable[[], int]:
    """The bundled sample through the command line: the whole process, report included."""
    out = tempfile.mkdtemp()
    trace = str(ROOT / "traces/data/day24.csv.gz")
    command = [
        *MODELIUM, "simulate", "--trace", trace, "--policy", "lru", "--gpus", "4xh100-80g",
        "--out", f"{out}/run", "--force", "--json", *more,
    ]  # fmt: skip

    def work() -> int:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=WARM)
        return int(json.loads(done.stdout)["runs"][0]["requests"]["arrived"])

    return work


def sample(scale: float) -> Callable[[], int]:
    """The same without the report: tables and figures only."""
    return report(scale, "--no-report")


def yardstick(scale: float) -> Callable[[], int]:
    """A SimPy process that waits and waits: what this machine makes of plain Python."""
    n = int(500_000 * scale)

    def work() -> int:
        env = simpy.Environment()
        env.process(_waits(env, n))
        env.run()
        return n

    return work


def _waits(env: simpy.Environment, n: int) -> Iterator[simpy.Event]:
    for _ in range(n):
        yield env.timeout(1)


def usage(scale: float) -> Callable[[], int]:
    """`modelium --help`: the whole process."""

    def work() -> int:
        subprocess.run([*MODELIUM, "--help"], check=True, capture_output=True, env=WARM)
        return 0

    return work


MODELIUM = (sys.executable, "-m", "modelium")
WARM = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
"""With Python's own cache of what it has compiled, as pip leaves it for a package."""

WORKS: dict[str, Callable[[float], Callable[[], int]]] = {
    "yardstick": yardstick,
    "vidur": vidur,
    "alpaserve": alpaserve,
    "churn": churn,
    "sample": sample,
    "report": report,
    "help": usage,
}

PROCESSES = ("sample", "report", "help")
"""Works that are commands of their own: CPU seconds and memory are those of the child."""


def measure(name: str, scale: float) -> dict[str, float | str]:
    """Run one work twice, the second time with the clock running."""
    work = WORKS[name](scale)
    if name in ("vidur", "yardstick", *PROCESSES):
        work()  # compiles, or fills the cache of compiled kernels
    else:
        WORKS[name](min(scale, 0.002))()
    before = _cpu_s()
    requests = work()
    cpu_s = _cpu_s() - before
    who = resource.RUSAGE_CHILDREN if name in PROCESSES else resource.RUSAGE_SELF
    return {
        "work": name,
        "requests": requests,
        "cpu_s": round(cpu_s, 4),
        "requests_per_cpu_s": round(requests / cpu_s),
        "peak_bytes": resource.getrusage(who).ru_maxrss * 1024,
    }


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Measure each work in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"unknown work {', '.join(sorted(unknown))}; known: {', '.join(WORKS)}")
    if options.here:
        print(json.dumps(measure(options.works[0], options.scale)))
        return
    rows = []
    for name in options.works or WORKS:
        command = [sys.executable, __file__, name, "--here", "--scale", str(options.scale)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    print(f"{'work':<12}{'requests':>12}{'CPU s':>10}{'requests/CPU s':>16}{'peak MB':>10}")
    for row in rows:
        print(
            f"{row['work']:<12}{row['requests']:>12,}{row['cpu_s']:>10.3f}"
            f"{row['requests_per_cpu_s']:>16,}{row['peak_bytes'] / 1e6:>10,.0f}"
        )


if __name__ == "__main__":
    main()
