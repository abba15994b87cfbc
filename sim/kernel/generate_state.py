"""The arrays of the continuous-batching engines: requests, engines, and tables of step times.

Everything is a column: requests are rows of a whole trace, engines are slots that instances come
and go in, and a *row* holds the limits and step times of one kind of engine. Time is in whole
picoseconds, so that any order of additions gives the same sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.errors import ConfigError
from modelium.results.columns import columns, owned
from modelium.sim.kernel.heap import NEVER
from modelium.sim.spec import Engine, Generate
from modelium.units import ps

OUTSIDE, WAITING, RUNNING, FINISHED = range(4)
"""Where a request is, as its engine sees it (`Requests.place`)."""

FULL_SPEED = 1024
"""Slow-down factors are fixed-point numbers over this."""


class Requests(NamedTuple):
    """Columns by request: what it asks for, then what became of it."""

    model: NDArray[np.int32]
    prompt: NDArray[np.int32]  # tokens
    output: NDArray[np.int32]  # tokens
    prefix: NDArray[np.int32]  # what the prompt begins with, -1: nothing known; empty: of no prompt
    prefix_tokens: NDArray[np.int32]  # how much of the prompt that is
    known_hit: NDArray[np.int32]  # tokens said to be cached, where prefix is -1

    place: NDArray[np.int8]
    computed: NDArray[np.int32]  # tokens whose KV was computed by the last prefill, or at the end
    emitted: NDArray[np.int32]  # output tokens, up to date while the request does not run
    next_in_queue: NDArray[np.int32]
    first_ps: NDArray[np.int64]  # when the first token came, -1 before
    finish_ps: NDArray[np.int64]  # when the last token came, -1 before
    preemptions: NDArray[np.int32]
    cached: NDArray[np.int32]  # prompt tokens found in the prefix cache at first, -1 before
    blocks: NDArray[np.int32]  # in its engine's queue of free blocks
    older: NDArray[np.int32]  # neighbours in that queue
    newer: NDArray[np.int32]


class Engines(NamedTuple):
    """All engines: records by slot, their batches, the rows that they run by, cached prefixes."""

    engines: NDArray[Any]  # [slot] of ENGINE
    batch: NDArray[np.int32]  # [slot, place] running requests, oldest admission first
    left: NDArray[np.int32]  # [slot, place] output tokens to come
    room: NDArray[np.int32]  # [slot, place] free tokens in the last block, this step's counted out
    rows: NDArray[Any]  # [row] of ROW
    decode_base: NDArray[np.int64]  # [row, decoding sequences] ps
    decode_kv: NDArray[np.int64]  # [row, decoding sequences] ps per token of context
    mixed_base: NDArray[np.int64]  # [row, tokens of the step] ps
    prefix_key: NDArray[np.int64]  # hash table: life of an engine and prefix, 0 empty
    prefix_of: NDArray[np.int32]  # hash table: the last request that was admitted with it
    counters: NDArray[np.int64]  # lives given out, prefixes in the table


ENGINE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "due_ps",  # when the iteration or span ends, NEVER if idle
            "start_ps",
            "iterations",  # of the span; 0: nothing runs
            "base_ps",  # of an iteration
            "rate_ps",  # more per token of decoding context
            "context",  # of the decoding sequences in the first iteration, its tokens counted in
            "decoding",  # sequences
            "prefilling",  # sequences
            "settled",  # places in the batch that had their first token before this iteration
            "partial",  # tokens of the last sequence that later iterations will prefill
            "least_left",  # iterations until the next sequence is complete
            "step_tokens",  # of one iteration
            "prefill_held",  # KV tokens of the prefilling sequences
            "sum_cx",
            "sum_cc",
            "running",
            "waiting",
            "head",  # of the waiting queue
            "tail",
            "held_tokens",  # KV tokens of the running sequences, first iteration counted in
            "owed_tokens",  # what all unfinished requests compute in all
            "queued_tokens",  # what the waiting have to prefill
            "blocks",  # of the KV pool
            "free_blocks",
            "blank_blocks",  # of the free ones: with nothing of use in them
            "oldest",  # of the queue of other free blocks
            "newest",
            "row",
            "life",  # number of this use of the slot
            "slow",  # over FULL_SPEED
            "busy_ps",
            "tokens",  # computed
            "preemptions",
        )
    ]
    + [("kv_token_ps", np.float64)]  # integral of held tokens over time
)

NO_LIMIT = 1 << 62

ROW = np.dtype(
    [
        (name, np.int64)
        for name in (
            "max_num_seqs", "max_batched_tokens", "block_tokens", "watermark_blocks",
            "max_model_len", "prefix_caching",
            "mixed_decode", "mixed_prefill", "mixed_kv", "mixed_ctx", "mixed_sq",
        )
    ]
)  # fmt: skip


def make_requests(
    prompt: NDArray[Any],
    output: NDArray[Any],
    model: NDArray[Any] | None = None,
    prefix: NDArray[Any] | None = None,
    prefix_tokens: NDArray[Any] | None = None,
    known_hit: NDArray[Any] | None = None,
) -> Requests:
    """Columns of requests that have not yet arrived anywhere."""
    i8, i32, i64, n = np.int8, np.int32, np.int64, len(prompt)
    own = columns(
        n,
        prefix_tokens=(i32, 0 if prefix_tokens is None else prefix_tokens),
        known_hit=(i32, 0 if known_hit is None else known_hit),
        place=(i8, 0),
        computed=(i32, 0),
        emitted=(i32, 0),
        next_in_queue=(i32, 0),  # written before it is read
        first_ps=(i64, -1),
        finish_ps=(i64, -1),
        preemptions=(i32, 0),
        cached=(i32, -1),
        blocks=(i32, 0),
        older=(i32, 0),  # written before it is read
        newer=(i32, 0),  # written before it is read
    )
    return Requests(
        model=np.zeros(n, i32) if model is None else owned(model, i32),
        prompt=owned(prompt, i32),
        output=owned(output, i32),
        prefix=owned([] if prefix is None else prefix, i32),
        **own,
    )


def make_engines(slots: int, specs: Sequence[Engine], prefixes: int = 0) -> Engines:
    """Empty slots, and a row for each of `specs` (left blank where it is not a `Generate`).

    `prefixes`: at most so many pairs of engine and prefix are remembered; as many as requests
    have a prefix is always enough. Raises ConfigError for limits that no engine can keep.
    """
    rows = [spec if isinstance(spec, Generate) else None for spec in specs]
    seqs = max((row.max_num_seqs for row in rows if row), default=1)
    tokens = max((row.max_batched_tokens for row in rows if row), default=1)
    size = 1 << (2 * prefixes + 1).bit_length()
    made = Engines(
        engines=np.zeros(slots, ENGINE),
        batch=np.zeros((slots, seqs), np.int32),
        left=np.zeros((slots, seqs), np.int32),
        room=np.zeros((slots, seqs), np.int32),
        rows=np.zeros(max(1, len(rows)), ROW),
        decode_base=np.zeros((max(1, len(rows)), seqs + 1), np.int64),
        decode_kv=np.zeros((max(1, len(rows)), seqs + 1), np.int64),
        mixed_base=np.zeros((max(1, len(rows)), tokens + 1), np.int64),
        prefix_key=np.zeros(size, np.int64),
        prefix_of=np.zeros(size, np.int32),
        counters=np.zeros(2, np.int64),
    )
    made.engines["due_ps"] = NEVER
    for k, spec in enumerate(rows):
        if spec is not None:
            _fill_row(made, k, spec)
    return made


def _fill_row(engines: Engines, k: int, spec: Generate) -> None:
    _check(spec)
    step = spec.step
    engines.decode_base[k] = _hinge(
        step.decode_c, step.decode_lo, step.decode_hi, step.decode_hinge,
        engines.decode_base.shape[1],
    )  # fmt: skip
    for at, change in step.decode_bends:
        engines.decode_base[k, at:] += ps(change) * np.arange(engines.decode_base.shape[1] - at)
    engines.decode_kv[k] = ps(step.decode_kv)
    engines.mixed_base[k] = _hinge(
        step.mixed_c, step.mixed_lo, step.mixed_hi, step.mixed_hinge, engines.mixed_base.shape[1]
    )
    row = engines.rows[k]
    for name in ("max_num_seqs", "max_batched_tokens", "block_tokens", "watermark_blocks"):
        row[name] = getattr(spec, name)
    row["max_model_len"] = NO_LIMIT if spec.max_model_len is None else spec.max_model_len
    row["prefix_caching"] = spec.prefix_caching
    for name in ("mixed_decode", "mixed_prefill", "mixed_kv", "mixed_ctx", "mixed_sq"):
        row[name] = ps(getattr(step, name))


def _hinge(c: float, lo: float, hi: float, hinge: int, size: int) -> NDArray[np.int64]:
    """`c + lo*min(x, hinge) + hi*max(x - hinge, 0)` in picoseconds for x = 0, 1, ..."""
    x = np.arange(size, dtype=np.int64)
    below, above = np.minimum(x, hinge), np.maximum(x - hinge, 0)
    time: NDArray[np.int64] = ps(c) + ps(lo) * below + ps(hi) * above
    return time


def _check(spec: Generate) -> None:
    for name in ("kv_tokens", "max_num_seqs", "block_tokens"):
        if getattr(spec, name) < 1:
            raise ConfigError(f"{name}: {getattr(spec, name)}: must be at least 1")
    if spec.max_model_len is not None and spec.max_model_len < 1:
        raise ConfigError(f"max_model_len: {spec.max_model_len}: must be at least 1")
    if spec.max_batched_tokens < spec.max_num_seqs:
        raise ConfigError(
            f"max_batched_tokens: {spec.max_batched_tokens}: must be at least max_num_seqs "
            f"({spec.max_num_seqs}), so that all running sequences can decode in one step"
        )
