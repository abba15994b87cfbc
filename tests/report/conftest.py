"""Runs made up consistently: a toy cluster that loads on a miss and drops the longest unused."""

import math

import numpy as np
import pytest

from modelium.core import Decision, Gpu
from modelium.results.record import (
    COLD,
    OUTCOMES,
    Run,
    decisions_table,
    requests_table,
    timeline_table,
)
from modelium.results.summary import summarize
from modelium.units import GIB

SPAN_S = 86400.0


class Toy:
    """One copy a model, whole GPUs' worth of memory, loads of 20 s and more, wakes of 1 s."""

    def __init__(self, n_gpus, names, sizes, rng):
        self.names, self.sizes, self.rng = names, sizes, rng
        self.free = [76 * GIB] * n_gpus
        self.at = {}  # model -> [gpu, ready_s, last_used_s, instance, phase]
        self.rows, self.log, self.made = [], [], 0

    def serve(self, model, now):
        """When a request can start, the tier it waited for, and its instance."""
        here = self.at.get(model)
        if here is not None and here[4] == "ready":
            here[2] = now
            return max(now, here[1]), "disk" if now < here[1] else "", here[3]
        if here is not None:
            return self.wake(model, now)
        return self.load(model, now)

    def load(self, model, now):
        size = self.sizes[model]
        gpu = max(range(len(self.free)), key=lambda g: self.free[g])
        self.room(gpu, size, model, now)
        took = 14 + size / (4.0 * GIB) + self.rng.exponential(2.0)
        self.made += 1
        name = f"{self.names[model]}#{self.made}"
        self.at[model] = [gpu, now + took, now, name, "ready"]
        self.free[gpu] -= size
        self.note(
            now, "load", model, name, gpu, f"1 waiting, oldest 0.0 s; {took:.0f} s", took, "disk"
        )
        self.rows.append((f"gpu{gpu}", now, now + took, "loading", self.names[model], name, size))
        return now + took, "disk", name

    def wake(self, model, now):
        gpu, since, _, name, _ = self.at[model]
        self.free[gpu] += GIB
        self.at[model][4] = "ready"
        self.room(gpu, self.sizes[model], model, now)
        self.free[gpu] -= self.sizes[model]
        self.rows.append((f"gpu{gpu}", since, now, "asleep", self.names[model], name, GIB))
        self.at[model] = [gpu, now + 1.0, now, name, "ready"]
        self.note(now, "wake", model, name, gpu, "1 waiting; wake costs 1.0 s", 1.0, "sleep-1")
        return now + 1.0, "sleep-1", name

    def room(self, gpu, size, but, now):
        while self.free[gpu] < size:
            here = [m for m, c in self.at.items() if c[0] == gpu and c[4] == "ready" and m != but]
            idle = [m for m in here if self.at[m][1] <= now] or here
            victim = min(idle, key=lambda m: self.at[m][2])
            self.drop(victim, gpu, now)

    def drop(self, model, gpu, now):
        _, _, used, name, _ = self.at[model]
        self.stay(model, now)
        self.free[gpu] += self.sizes[model]
        if model % 3 == 0:
            self.at[model] = [gpu, now, used, name, "asleep"]
            self.free[gpu] -= GIB
            kind = "sleep"
        else:
            del self.at[model]
            kind = "unload"
        self.note(
            now, kind, model, name, gpu, f"lru: idle {now - used:.0f} s, longest of all", 0.5, ""
        )

    def stay(self, model, until):
        gpu, ready, _, name, _ = self.at[model]
        if until > ready:
            for kind, share in (("weights", 0.6), ("kv", 0.35), ("overhead", 0.05)):
                held = self.sizes[model] * share
                self.rows.append((f"gpu{gpu}", ready, until, kind, self.names[model], name, held))

    def note(self, now, kind, model, name, gpu, reason, took, tier):
        self.log.append(
            Decision(
                now, kind, self.names[model], name, (f"gpu{gpu}",), reason, now + took, "", tier
            )
        )


def make_run(policy="lru", n=60_000, n_models=24, n_gpus=4, seed=0, names=None, **meta):
    """A day of `n` requests under the toy cluster."""
    rng = np.random.default_rng(seed)
    kinds = ("llama", "qwen", "phi")
    names = names or [f"{kinds[i % 3]}-{i + 1}b-chat" for i in range(n_models)]
    arrival = np.sort(day(rng, n))
    weight = np.arange(1, n_models + 1) ** -1.1
    model = rng.choice(n_models, n, p=weight / weight.sum())
    sizes = [round(float(s) * GIB) for s in rng.uniform(8, 24, n_models)]
    toy = Toy(n_gpus, names, sizes, rng)
    served = [toy.serve(int(m), float(t)) for m, t in zip(model, arrival, strict=True)]
    for m, copy in toy.at.items():
        if copy[4] == "ready":
            toy.stay(m, SPAN_S)
    tokens = rng.geometric(1 / 200, n).astype(np.int32)
    first = np.array([start for start, _, _ in served]) + rng.lognormal(-2, 0.6, n)
    finish = first + (tokens - 1) * rng.lognormal(-3.9, 0.2, n)
    lost = rng.random(n) < 0.002
    met = (first - arrival <= 2.0) & ~lost
    instances = sorted({name for _, _, name in served})
    code = {name: i for i, name in enumerate(instances)}
    rows = toy.rows + [
        (f"gpu{g}", k * 180.0, (k + 1) * 180.0, "busy", "", "", float(b))
        for g in range(n_gpus)
        for k, b in enumerate(
            np.clip(0.4 + 0.3 * np.sin(np.arange(480) / 70 + g) + rng.normal(0, 0.05, 480), 0, 1)
        )
    ]
    requests = requests_table(
        {
            "arrival_s": arrival,
            "model": (model, names),
            "prompt_tokens": rng.integers(1, 2000, n).astype(np.int32),
            "output_tokens": tokens,
            "outcome": (np.where(lost, OUTCOMES.index("failed"), 0), OUTCOMES),
            "instance": (np.array([code[name] for _, _, name in served]), instances),
            "first_token_s": np.where(lost, math.nan, first),
            "finish_s": np.where(lost, math.nan, finish),
            "cold": (np.array([COLD.index(tier) for _, tier, _ in served]), COLD),
            "preemptions": np.zeros(n, np.int32),
            "cached_tokens": np.zeros(n, np.int32),
            "retries": np.zeros(n, np.int32),
            "slo_met": met,
        }
    )
    decisions = decisions_table(toy.log)
    timeline = timeline_table(rows)
    told = {"policy": policy, "trace": "made up", "seed": seed, "versions": {"modelium": "0"}}
    gpus = [Gpu(f"gpu{i}", "node0", 76 * GIB, "h100-80g") for i in range(n_gpus)]
    summary = summarize(requests, decisions, timeline, span_s=SPAN_S, gpus=gpus, meta=told | meta)
    return Run(summary, requests, decisions, timeline)


def day(rng, n):
    """Arrival times with a day curve."""
    t = rng.random(3 * n) * SPAN_S
    keep = rng.random(3 * n) < 0.55 + 0.45 * np.sin(2 * np.pi * (t / SPAN_S - 0.3))
    return t[keep][:n] if keep.sum() >= n else rng.random(n) * SPAN_S


@pytest.fixture(scope="session")
def fabricate():
    return make_run
