"""How near to the bound the integer programme comes: 16 GPUs, 64 models, 5 s on 2 cores.

    python benchmarks/ilp.py [CASE ...] [--json] [--time-limit 5] [--workers 2] [--seed 1]
                             [--fleet 2x8xh100-80g] [--no-sleep]

Cases: `empty`, a cluster with nothing loaded; `moved`, the cluster as planned for yesterday's
demand when today's is another; `heavy`, as `empty` with five times the demand, so that some models
need several copies. Models are the catalogue's, by popularity (Zipf) and lengths as in chats, by
default on two nodes of eight H100; the 5 s include reading the state and building the programme.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from modelium.catalog import model, models
from modelium.config import Config, make_plan
from modelium.config.schema import Cluster, ModelEntry
from modelium.control.costs import StagedCosts
from modelium.control.state import Copy, FrozenDemand, FrozenMeters, State
from modelium.core import Phase
from modelium.policies.ilp.model import solve
from modelium.policies.ilp.problem import MICRO, Effort, Plan
from modelium.policies.ilp.view import Aims, View
from modelium.policies.toolkit.forecast import EwmaForecast
from modelium.sim import SimInput
from modelium.units import MIB

FLEET = "2x8xh100-80g"
COPIES = 64
RATE_PER_S = 8.0
PROMPT, OUTPUT = 700, 200
AIMS = Aims(
    horizon_s=900.0, busy_max=0.8, crowd_share=0.1, move_per_s=0.01, patience_s=10.0,
    kv_least=0.25, kv_headroom=1.5, sleep=True,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One case: values are requests kept from being late."""

    case: str
    gpus: int
    models: int
    staying: float
    value: float
    bound: float
    gap: float
    """(bound - value) / value."""
    loads: int
    wall_s: float
    cpu_s: float
    """Of all threads: less than `workers` x `wall_s` where others use the cores too."""


def cluster_of(fleet: str) -> SimInput:
    """These GPUs and 64 language models of the catalogue's sizes, 0.5B to 72B."""
    known = [model(name) for name in models()]
    chat = [spec.name for spec in known if spec.kv_bytes_per_token and spec.weights_bytes < 2e11]
    entries = {f"m{i:02}": ModelEntry(catalogue=chat[i % len(chat)]) for i in range(COPIES)}
    cluster = Cluster.of({"gpus": fleet})
    return make_plan(Config(models=entries, cluster=cluster)).sim_input()


def state_of(given: SimInput, rate_per_s: float, seed: int) -> State:
    """A cluster with nothing on it and a steady demand."""
    ranks = list(range(1, len(given.models) + 1))
    random.Random(seed).shuffle(ranks)
    total = sum(1 / rank for rank in ranks)
    demand = {
        spec.name: FrozenDemand(1000, 0, 0.0, 0.0, rate_per_s / rank / total, n_in, n_out)
        for spec, rank in zip(given.models, ranks, strict=True)
        for n_in, n_out in [(1000 * PROMPT, 1000 * OUTPUT)]
    }
    state = State(
        {spec.name: spec for spec in given.models},
        {node.id: node for node in given.nodes},
        {gpu.id: gpu for gpu in given.gpus},
        demand,
        lambda: 1000.0,
        lambda: (),
    )
    state.costs = StagedCosts(state, given.facts, given.work)
    return state


def settle(state: State, plan: Plan) -> None:
    """Load what the plan says."""
    for i, new in enumerate(plan.new):
        spec, node = state.models[new.model], state.gpus[new.gpus[0]].node
        size = spec.bytes_per_gpu(new.kv_mib * MIB * spec.gpus)
        copy = Copy(f"{new.model}#{i}", new.model, new.gpus, node, FrozenMeters(0, 0, 1, 0.0, 0.0))
        copy.phase, copy.bytes_per_gpu, copy.ready_since_s = Phase.READY, size, 0.0
        state.add(copy)


def empty(given: SimInput, aims: Aims, effort: Effort, seed: int) -> State:
    """Nothing is loaded."""
    return state_of(given, RATE_PER_S, seed)


def heavy(given: SimInput, aims: Aims, effort: Effort, seed: int) -> State:
    """Nothing is loaded and much is asked."""
    return state_of(given, 5 * RATE_PER_S, seed)


def moved(given: SimInput, aims: Aims, effort: Effort, seed: int) -> State:
    """Yesterday's plan, today's demand."""
    yesterday = state_of(given, RATE_PER_S, seed)
    _, plan = solve(View(yesterday, aims, EwmaForecast()).problem(), effort)
    today = state_of(given, RATE_PER_S, seed + 1)
    settle(today, plan)
    return today


CASES: dict[str, Callable[[SimInput, Aims, Effort, int], State]] = {
    "empty": empty,
    "moved": moved,
    "heavy": heavy,
}


def measure(case: str, given: SimInput, aims: Aims, effort: Effort, seed: int) -> Row:
    """Plan once."""
    state = CASES[case](given, aims, effort, seed)
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    problem = View(state, aims, EwmaForecast()).problem()
    stay, best = solve(problem, effort)
    return Row(
        case,
        len(problem.rooms),
        len(problem.wants),
        stay.value / MICRO,
        best.value / MICRO,
        best.bound / MICRO,
        (best.bound - best.value) / best.value,
        len(best.new),
        time.perf_counter() - begin_s,
        time.process_time() - cpu_s,
    )


def main() -> None:
    """Plan each case and print how near to the bound the plan is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--time-limit", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fleet", default=FLEET, help="the GPUs [%(default)s]")
    parser.add_argument("--no-sleep", action="store_true", help="plans put nothing to sleep")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    effort = Effort(float("inf"), options.time_limit - 0.5, options.workers)
    given, aims = cluster_of(options.fleet), replace(AIMS, sleep=not options.no_sleep)
    rows = [measure(case, given, aims, effort, options.seed) for case in options.cases or CASES]
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    print(f"{'case':<8}{'GPUs':>6}{'models':>8}{'staying':>10}{'plan':>10}{'bound':>10}"
          f"{'gap':>8}{'loads':>7}{'wall s':>8}{'CPU s':>8}")  # fmt: skip
    for row in rows:
        print(
            f"{row.case:<8}{row.gpus:>6}{row.models:>8}{row.staying:>10.1f}{row.value:>10.1f}"
            f"{row.bound:>10.1f}{row.gap:>8.2%}{row.loads:>7}{row.wall_s:>8.2f}{row.cpu_s:>8.2f}"
        )


if __name__ == "__main__":
    main()
