"""A case of kind `vllm`: requests that a real vLLM served, and when; nothing is fitted to them.

Two forms of folder. Plain: `config.json` (model, gpu, max_num_seqs, max_num_batched_tokens,
kv_tokens, prefix_caching; tp and replicas where not 1) and `requests.csv`. As LLMServingSim's
`bench` leaves it: `config.json` (the cluster), `vllm/meta.json` and `vllm/requests.jsonl`.
The step time is the shipped profile's; its batches' unevenness follows from the requests' lengths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Comparison, Floats, Times, by_arrival, compare, read_config

from modelium import catalog
from modelium.catalog import ModelSpec
from modelium.errors import ConfigError
from modelium.sim.fit.llmservingsim import gpu_of, model_of
from modelium.sim.fit.tables import column, read_csv
from modelium.sim.kernel.generate import run_engine
from modelium.sim.profiles import Profile, context_spread, step_time
from modelium.sim.spec import Generate
from modelium.units import GIB

NAMES = ("arrival_s", "prompt_tokens", "output_tokens", "real_first_token_s", "real_last_token_s")
HITS = "prefix_hit_tokens_est"
MAX_NUM_SEQS, MAX_BATCHED_TOKENS = 256, 2048
"""vLLM 0.19's defaults, where a run's arguments leave them open."""
ALIASES = {
    "tp_size": "tp",
    "tensor_parallel_size": "tp",
    "dp_size": "replicas",
    "data_parallel_size": "replicas",
    "enable_prefix_caching": "prefix_caching",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """The engine that served: `replicas` of it, each on `tp` GPUs."""

    model: str
    gpu: str
    kv_tokens: int
    """Of each replica."""
    tp: int = 1
    replicas: int = 1
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int = MAX_BATCHED_TOKENS
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """The requests, in order of arrival, and what became of them."""

    prompt: Floats
    hits: Floats
    times: Times

    def part(self, keep: slice) -> Served:
        """Some of the requests."""
        columns = (getattr(self.times, field.name)[keep] for field in fields(self.times))
        return Served(self.prompt[keep], self.hits[keep], Times(*columns))


def run(folder: Path) -> Comparison:
    """Simulate and compare. Raises ModeliumError for a folder of another form."""
    config = read_config(folder / "config.json")
    setup, served = _raw(folder, config) if "nodes" in config else _plain(folder)
    profile = _profile(setup, served)
    engine = Generate(
        profile.step, setup.kv_tokens, setup.max_num_seqs, setup.max_num_batched_tokens,
        prefix_caching=setup.prefix_caching,
    )  # fmt: skip
    first, last = np.empty_like(served.prompt), np.empty_like(served.prompt)
    for replica in range(setup.replicas):  # dealt out in turn
        mine = slice(replica, None, setup.replicas)
        first[mine], last[mine] = _serve(engine, served.part(mine))
    theirs = served.times
    ours = Times(theirs.arrival_s, first, last, theirs.output_tokens)
    return Comparison(f"step time {profile.origin}: {profile.source}", compare(ours, theirs))


def _profile(setup: Setup, served: Served) -> Profile:
    output = served.times.output_tokens
    held = float(np.mean(served.prompt + output / 2))
    running = int(max(min(setup.max_num_seqs, setup.kv_tokens / held), 1))
    spread = context_spread(served.prompt, output, running)
    return step_time(setup.model, setup.gpu, setup.tp, replicas=setup.replicas, spread=spread)


def _serve(engine: Generate, served: Served) -> tuple[Floats, Floats]:
    times = served.times
    columns = (served.prompt, times.output_tokens, served.hits)
    done = run_engine(engine, times.arrival_s, *(c.astype(np.int64) for c in columns))
    if np.isnan(done.finish_s).any():
        lost = int(np.isnan(done.finish_s).argmax())
        raise ConfigError(f"request {lost} does not fit into {engine.kv_tokens} tokens of KV")
    return done.first_s, done.finish_s


def _plain(folder: Path) -> tuple[Setup, Served]:
    config = read_config(folder / "config.json", "model", "gpu", "kv_tokens")
    model, gpu = model_of(config["model"]), gpu_of(config["gpu"])
    config |= {ALIASES[name]: value for name, value in config.items() if name in ALIASES}
    known = {field.name for field in fields(Setup)} - {"model", "gpu"}
    given = {name: config[name] for name in known if config.get(name) is not None}
    file = folder / "requests.csv"
    rows = by_arrival(read_csv(file), file)
    arrival, prompt, output, first, last = (column(rows, name, file) for name in NAMES)
    hits = column(rows, HITS, file) if HITS in rows else np.zeros_like(prompt)
    served = Served(prompt, hits, Times(arrival, first, last, output))
    return Setup(model.name, gpu.name, **given), served


def _raw(folder: Path, config: dict[str, Any]) -> tuple[Setup, Served]:
    meta = read_config(folder / "vllm/meta.json", "engine_kwargs")
    arguments = meta["engine_kwargs"]
    instance = config["nodes"][0]["instances"][0]
    model, gpu = model_of(instance["model_name"]), gpu_of(instance["hardware"])
    tp, replicas = (arguments.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "data"))
    measured = (meta.get("kv_cache") or {}).get("num_kv_tokens")
    setup = Setup(
        model.name,
        gpu.name,
        measured or _kv_tokens(model, instance["npu_mem"], tp, replicas),
        tp,
        replicas,
        arguments.get("max_num_seqs") or MAX_NUM_SEQS,
        arguments.get("max_num_batched_tokens") or MAX_BATCHED_TOKENS,
    )
    lines = (folder / "vllm/requests.jsonl").read_text(encoding="utf-8").splitlines()
    requests = sorted(map(json.loads, lines), key=_queued)
    names = ("queued_ts", "input_toks", "output_toks", "first_token_ts", "last_token_ts")
    arrival, prompt, output, first, last = (
        np.array([request[name] for request in requests], dtype=float) for name in names
    )
    times = Times(arrival - arrival[0], first - arrival[0], last - arrival[0], output)
    return setup, Served(prompt, np.zeros_like(prompt), times)


def _queued(request: dict[str, Any]) -> tuple[float, int, str]:
    """By time, those of one instant by their ids ("bench-2" before "bench-10")."""
    name = str(request.get("request_id", ""))
    return float(request["queued_ts"]), len(name), name


def _kv_tokens(model: ModelSpec, memory: dict[str, float], tp: int, replicas: int) -> int:
    """What vLLM finds free after its profiling run: its share less weights and overhead.

    Replicas of a mixture of experts share the experts.
    """
    routed = model.counted_params - model.counted_active_params
    if model.experts:
        routed = round(routed / (1 - model.active_experts / model.experts))
    weights = model.weights_bytes - model.dtype_bytes * routed * (1 - 1 / replicas)
    share = memory["mem_size"] * GIB * memory["mem_util"] * tp
    free = share - weights - tp * catalog.overhead_bytes(model, tp)
    return int(free // (model.kv_bytes_per_token * model.kv_copies(tp)))
