"""The continuous-batching engine of the simulator: what vLLM V1 does, in compiled kernels.

Each iteration (vLLM, v1/core/sched/scheduler.py, `Scheduler.schedule`):

1. Running requests go first, in order of admission: one token for a decoding sequence, the next
   chunk for one that still prefills, within `max_batched_tokens`. Where KV blocks are short, the
   last running request is preempted: its blocks are freed, it goes to the front of the waiting
   queue, and later prefills prompt and output so far again.
2. If nothing was preempted, the waiting are admitted first come first served while budget, seats
   (`max_num_seqs`) and blocks last. All known tokens of a request must fit in free blocks
   (`scheduler_reserve_full_isl`, the default since 0.19) though only its chunk takes them;
   `watermark_blocks` stay free if others run. Only the last admitted may get less than its prompt.
3. Full blocks of tokens that the prefix cache has are not computed (see `generate_blocks`), but at
   least one token always is.
4. The iteration that computes the last known token of a request emits the next one, at its end. A
   request is complete when `output` tokens are out (one, where `output` is less).

Its time is `StepTime` in whole picoseconds. An iteration without prefill takes
`base(D) + kv(D)*K`, any other `base(T) + decode*D + prefill*S + kv*K + ctx*sum(c*x) + sq*sum(c*c)`,
K being the context of decoding sequences, the token at hand included. A slow-down factor f scales
the base and the rate, or the mixed sum, as `(x*f) >> 10`. While a batch does not change, n
iterations are one event in closed form (`generate_plan`); whatever happens in between cuts the span
at the next iteration boundary, and an event at a boundary's very instant comes before it.

`tests/sim/reference_generate.py` says the same in plain Python, one iteration at a time.
"""

# mypy: disable-error-code="no-any-return"
# Fields of records are Any.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelium.sim.jit.decorators import inlined, kernel
from modelium.sim.kernel.generate_blocks import blocks_for, give, take
from modelium.sim.kernel.generate_schedule import duration, iterations_until, plan
from modelium.sim.kernel.generate_state import (
    FINISHED,
    FULL_SPEED,
    OUTSIDE,
    WAITING,
    Engines,
    Requests,
    make_engines,
    make_requests,
)  # fmt: skip
from modelium.sim.kernel.heap import NEVER
from modelium.sim.spec import Generate
from modelium.units import PS_PER_S

__all__ = [
    "Columns", "Engines", "Requests", "backlog_tokens", "busy_ps_now", "drop", "fits",
    "kv_tokens_now", "make_engines", "make_requests", "predict", "put", "run_engine", "set_slow",
    "start", "step",
]  # fmt: skip


@kernel
def start(engines: Engines, e: int, row: int, kv_tokens: int) -> None:
    """Begin a new life of slot `e`: an idle engine by `row`, with an empty pool of `kv_tokens`."""
    engine = engines.engines[e]
    engine.row = row
    engine.blocks = kv_tokens // engines.rows[row].block_tokens
    engine.slow = FULL_SPEED
    engine.busy_ps = engine.tokens = engine.preemptions = 0
    engine.kv_token_ps = 0.0
    _clear(engines, engine)


@inlined
def _clear(engines: Engines, engine: Any) -> None:
    engine.due_ps = NEVER
    engine.iterations = engine.partial = engine.running = engine.waiting = 0
    engine.held_tokens = engine.owed_tokens = engine.queued_tokens = 0
    engine.head = engine.tail = engine.oldest = engine.newest = -1
    engine.free_blocks = engine.blank_blocks = engine.blocks
    engines.counters[0] += 1
    engine.life = engines.counters[0]


@kernel
def fits(engines: Engines, requests: Requests, e: int, r: int) -> bool:
    """Whether engine `e` can ever serve request `r`; one that does not fit must not be put.

    vLLM refuses a prompt that leaves no room for one token, and one that leaves less than asked.
    """
    engine = engines.engines[e]
    row = engines.rows[engine.row]
    if requests.prompt[r] + max(requests.output[r], 1) > row.max_model_len:
        return False
    return blocks_for(_work(requests, r), row.block_tokens) <= engine.blocks


@inlined
def _work(requests: Requests, r: int) -> int:
    """Tokens that `r` holds in the KV cache at its end: all but the last one out."""
    return requests.prompt[r] + max(requests.output[r], 1) - 1


@kernel
def put(engines: Engines, requests: Requests, e: int, r: int, now: int) -> None:
    """Request `r` arrives at engine `e`; a batch that could take it next is cut short."""
    engine = engines.engines[e]
    requests.place[r] = WAITING
    requests.next_in_queue[r] = -1
    if engine.waiting == 0:
        engine.head = r
    else:
        requests.next_in_queue[engine.tail] = r
    engine.tail = r
    engine.waiting += 1
    engine.owed_tokens += _work(requests, r)
    engine.queued_tokens += requests.prompt[r] + requests.emitted[r]
    if engine.iterations == 0:
        engine.due_ps = min(engine.due_ps, now)
    elif engine.waiting == 1 and engine.running < engines.rows[engine.row].max_num_seqs:
        _cut(engine, now)


@kernel
def set_slow(engines: Engines, requests: Requests, e: int, now: int, factor: int) -> None:
    """From the next iteration boundary on, engine `e` takes `factor / 1024` times as long."""
    engine = engines.engines[e]
    if factor != engine.slow:
        engine.slow = factor
        _cut(engine, now)


@inlined
def _cut(engine: Any, now: int) -> None:
    """End the span at its next iteration boundary."""
    if engine.iterations > 1:
        engine.iterations = iterations_until(engine, now)
        engine.due_ps = engine.start_ps + duration(engine, engine.iterations)


@kernel
def step(engines: Engines, requests: Requests, e: int, done: NDArray[Any]) -> int:
    """Engine `e` is due: end its iteration or span and plan the next; return the number complete.

    Complete requests are written to `done`, which has room for `max_num_seqs`.
    """
    engine = engines.engines[e]
    now = engine.due_ps
    complete = 0
    if engine.iterations > 0:
        complete = _finish_span(engines, requests, e, now, done)
    plan(engines, requests, e, now)
    return complete


@inlined
def _finish_span(engines: Engines, requests: Requests, e: int, now: int, done: NDArray[Any]) -> int:
    engine, left = engines.engines[e], engines.left[e]
    n = engine.iterations
    _account(engine, n)
    if n > 1:
        _grow(engines, requests, e, n - 1)
    emitting = engine.running - (engine.partial > 0)
    for i in range(engine.settled, emitting):
        r = engines.batch[e, i]
        if requests.first_ps[r] < 0:
            requests.first_ps[r] = now
    for i in range(emitting):
        left[i] -= n
    return _retire(engines, requests, e, now, done) if n == engine.least_left else 0


@inlined
def _account(engine: Any, n: int) -> None:
    """Add `n` iterations to the engine's sums."""
    engine.busy_ps += duration(engine, n)
    engine.tokens += engine.step_tokens * n
    # Iteration j holds `held + D*j` tokens for `base + rate*(context + D*j)`: sums of j and j*j.
    d, held = float(engine.decoding), float(engine.held_tokens)
    base = float(engine.base_ps) + float(engine.rate_ps) * engine.context
    rate = float(engine.rate_ps) * d
    j, jj = n * (n - 1) / 2.0, (n - 1) * n * (2.0 * n - 1) / 6.0
    engine.kv_token_ps += n * held * base + (d * base + held * rate) * j + d * rate * jj


@inlined
def _grow(engines: Engines, requests: Requests, e: int, n: int) -> None:
    """Blocks for `n` more tokens of each running sequence."""
    engine, room = engines.engines[e], engines.room[e]
    block = engines.rows[engine.row].block_tokens
    whole, rest = n // block, n % block
    begun = 0
    for i in range(engine.running):
        more = room[i] < rest
        begun += more
        room[i] += block * more - rest
    take(engine, requests, whole * engine.running + begun)
    engine.held_tokens += n * engine.running


@inlined
def _retire(engines: Engines, requests: Requests, e: int, now: int, done: NDArray[Any]) -> int:
    """Take complete requests out of the batch and free their blocks."""
    engine = engines.engines[e]
    row = engines.rows[engine.row]
    batch, left, room = engines.batch[e], engines.left[e], engines.room[e]
    complete = 0
    for i in range(engine.running):
        r = batch[i]
        if left[i] > 0:
            kept = i - complete
            batch[kept], left[kept], room[kept] = r, left[i], room[i]
            continue
        done[complete] = r
        complete += 1
        tokens = _work(requests, r)
        requests.place[r] = FINISHED
        requests.computed[r] = tokens
        requests.emitted[r] = max(requests.output[r], 1)
        requests.finish_ps[r] = now
        engine.held_tokens -= tokens
        engine.owed_tokens -= tokens
        give(engine, requests, r, blocks_for(tokens, row.block_tokens), row.prefix_caching)
    engine.running -= complete
    return complete


@kernel
def drop(engines: Engines, requests: Requests, e: int, out: NDArray[Any]) -> int:
    """The engine crashed: empty it, as new; write its requests to `out` and return their number.

    They are as before their arrival, free to be put anywhere: running ones first, then the queue.
    `out` must have room for all of them. The span in flight is not added to the engine's sums.
    """
    engine = engines.engines[e]
    n = engine.running
    for i in range(n):
        out[i] = engines.batch[e, i]
    r = engine.head
    for _ in range(engine.waiting):
        out[n] = r
        n += 1
        r = requests.next_in_queue[r]
    for i in range(n):
        r = out[i]
        requests.place[r] = OUTSIDE
        requests.computed[r] = requests.emitted[r] = requests.blocks[r] = 0
        requests.next_in_queue[r] = requests.first_ps[r] = -1
    _clear(engines, engine)
    return n


@kernel
def kv_tokens_now(engines: Engines, requests: Requests, e: int, now: int) -> int:
    """Tokens in the KV cache, those of the iteration in flight included."""
    engine = engines.engines[e]
    if engine.iterations == 0:
        return 0
    return engine.held_tokens + (iterations_until(engine, now) - 1) * engine.decoding


@kernel
def busy_ps_now(engines: Engines, e: int, now: int) -> int:
    """Picoseconds that the engine has worked in this life."""
    engine = engines.engines[e]
    return engine.busy_ps + (now - engine.start_ps if engine.iterations > 0 else 0)


@kernel
def backlog_tokens(engines: Engines, requests: Requests, e: int, now: int) -> int:
    """Tokens that unfinished requests of the engine have yet to compute, after this iteration."""
    return engines.engines[e].owed_tokens - kv_tokens_now(engines, requests, e, now)


@kernel
def predict(
    engines: Engines, requests: Requests, e: int, r: int, now_s: float
) -> tuple[float, float]:
    """When `r`, put now, would have its first and last token (s), if seats and blocks last.

    Prefills ahead of it go in full budgets; then it decodes in the batch as it is.
    """
    engine = engines.engines[e]
    row, k = engines.rows[engine.row], engine.row
    decoding = min(engine.running + 1, row.max_num_seqs)
    budget = max(1, row.max_batched_tokens - engine.running)
    known = requests.prompt[r] - min(requests.known_hit[r], requests.prompt[r] - 1)
    ahead = engine.partial + engine.queued_tokens + known
    steps = (ahead + budget - 1) // budget
    mixed = engines.mixed_base[k, min(ahead + engine.running, row.max_batched_tokens)]
    mixed += row.mixed_decode * engine.running + row.mixed_prefill
    mixed += row.mixed_kv * engine.held_tokens
    context = engine.held_tokens + requests.prompt[r]
    decode = engines.decode_base[k, decoding] + engines.decode_kv[k, decoding] * context
    scale = engine.slow / (FULL_SPEED * float(PS_PER_S))
    first_s = now_s + steps * mixed * scale
    return first_s, first_s + (max(requests.output[r], 1) - 1) * decode * scale


class Columns(NamedTuple):
    """What became of each request of `run_engine`; NaN times where it can never fit."""

    first_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    preemptions: NDArray[np.int32]
    cached: NDArray[np.int32]


def run_engine(
    spec: Generate,
    arrival_s: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    known_hit: ArrayLike | None = None,
    prefix: ArrayLike | None = None,
    prefix_tokens: ArrayLike | None = None,
) -> Columns:
    """Serve a whole trace on one engine, from idle to idle. Raises ConfigError for bad limits."""
    arrival_ps = np.rint(np.asarray(arrival_s, np.float64) * PS_PER_S).astype(np.int64)
    optional = (None if x is None else np.asarray(x) for x in (prefix, prefix_tokens, known_hit))
    requests = make_requests(np.asarray(prompt), np.asarray(output), None, *optional)
    engines = make_engines(1, [spec], prefixes=0 if prefix is None else len(arrival_ps))
    start(engines, 0, 0, spec.kv_tokens)
    order = np.argsort(arrival_ps, kind="stable")
    _serve(engines, requests, arrival_ps, order, np.zeros(spec.max_num_seqs, np.int64))
    return Columns(
        _seconds(requests.first_ps), _seconds(requests.finish_ps),
        requests.preemptions, np.maximum(requests.cached, 0),
    )  # fmt: skip


def _seconds(time_ps: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(time_ps < 0, np.nan, time_ps / PS_PER_S)


@kernel
def _serve(
    engines: Engines,
    requests: Requests,
    arrival_ps: NDArray[np.int64],
    order: NDArray[np.int64],
    done: NDArray[np.int64],
) -> None:
    engine = engines.engines[0]
    for r in order:
        now = arrival_ps[r]
        while engine.due_ps < now:
            step(engines, requests, 0, done)
        if fits(engines, requests, 0, r):
            put(engines, requests, 0, r, now)
    while engine.due_ps < NEVER:
        step(engines, requests, 0, done)
