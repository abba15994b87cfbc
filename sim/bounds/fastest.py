"""What no policy can beat: the least time in which a request is answered and a model comes back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from modelium.control.costs import Links
from modelium.core import Model
from modelium.sim.inputs import SimInput
from modelium.sim.spec import Engine, Generate, Infer, StepTime

Floats = NDArray[np.float64]


def fastest(engine: Engine, prompt: Floats, cached: bool) -> tuple[Floats, float]:
    """Least seconds to the first token of each request, and between tokens after it.

    Both hold for any batch that a request may be part of. `cached`: the prefix cache may spare all
    of a prompt but one token. Requests that are answered in one piece have no further tokens.
    """
    if isinstance(engine, Infer):
        return _in_one_piece(engine, prompt), 0.0
    spared = cached and engine.prefix_caching
    asked = np.ones_like(prompt) if spared else np.maximum(prompt, 1.0)
    return _prefill_s(engine, asked), _token_s(engine)


def _in_one_piece(engine: Infer, work: Floats) -> Floats:
    stages = engine.latency_s[:1] if engine.servers > 1 else engine.latency_s
    fixed = sum(min(row) for row in stages)
    return fixed + engine.fixed_s + max(engine.per_token_s, 0.0) * len(stages) * work


def _prefill_s(engine: Generate, tokens: Floats) -> Floats:
    """However it is cut: k steps of n tokens in all take at least k steps of n / k each.

    That is the convexity of a step's time where it bends upwards, as it does by a roofline. The
    sum is linear in k on both sides of n / hinge, so its least is there or at the fewest steps.
    """
    step = engine.step
    if not _grows(step):
        return np.zeros_like(tokens)
    each = step.mixed_c + step.mixed_prefill
    fewest = np.ceil(tokens / engine.max_batched_tokens)
    if step.mixed_lo > step.mixed_hi:
        return each * fewest + step.mixed_hi * tokens
    bend = max(step.mixed_hinge, 1)

    def total_s(steps: Floats) -> Floats:
        low = np.minimum(tokens, steps * bend)
        return each * steps + step.mixed_lo * low + step.mixed_hi * (tokens - low)

    return np.minimum(total_s(fewest), total_s(np.maximum(fewest, tokens / bend)))


def _token_s(engine: Generate) -> float:
    """One step, whether it only decodes or prefills for others (or again, after preemption)."""
    step = engine.step
    if not _grows(step):
        return 0.0
    n = np.arange(1, engine.max_num_seqs + 1)
    low = np.minimum(n, step.decode_hinge)
    base = step.decode_c + step.decode_lo * low + step.decode_hi * (n - low)
    for at, change in step.decode_bends:
        base = base + change * np.maximum(n - at, 0)
    return max(0.0, min(float(base.min()), step.mixed_c))


def _grows(step: StepTime) -> bool:
    """No part of a step's time shrinks with more work (a fitted profile might): else 0 is least."""
    return min(
        step.decode_kv, step.mixed_c, step.mixed_lo, step.mixed_hi, step.mixed_decode,
        step.mixed_prefill, step.mixed_kv, step.mixed_ctx, step.mixed_sq,
    ) >= 0  # fmt: skip


def load_s(given: SimInput, model: Model) -> float:
    """Least seconds of a load of `model`: best node, best tier, everything compiled, idle links."""
    stages = given.facts.stages(model.name)
    fixed = stages.before_s + min(stages.after_s(True), stages.after_s(False))
    return fixed + min(_moved_s(links, model, given.settings.host_cache) for links in _all(given))


def return_s(given: SimInput, model: Model) -> float:
    """Least seconds until a copy that is gone or asleep is ready: the fastest of all ways."""
    stages = given.facts.stages(model.name)
    ways = [load_s(given, model)]
    for node in given.nodes:
        links = given.facts.links(node.id)
        ways.append(stages.wake_s[1] + _moved_s(links, model, given.settings.host_cache))
        if node.host_bytes >= model.weights_bytes:
            per_s = model.gpus * links.pcie_bytes_per_s
            ways.append(stages.wake_s[0] + model.weights_bytes / per_s)
    return min(ways)


def _all(given: SimInput) -> Iterable[Links]:
    return (given.facts.links(node.id) for node in given.nodes)


def _moved_s(links: Links, model: Model, from_host: bool) -> float:
    rate = model.gpus * min(links.pcie_bytes_per_s, links.loader_bytes_per_s)
    return model.weights_bytes / (rate if from_host else min(rate, links.disk_bytes_per_s))
