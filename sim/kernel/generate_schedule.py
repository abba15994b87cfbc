"""What a continuous-batching engine runs next: batch formation, step time, span.

A *span* is a run of iterations whose batch does not change. It ends at the next completion or when
KV blocks run out; its length in time is a closed form in integers, equal to the sum of its
iterations. An iteration that prefills is a span of one. Semantics: `modelium.sim.kernel.generate`.

Within a span nobody waiting can be admitted: seats do not change and free blocks only get fewer.
That holds after a preemption too: the victim needs all the blocks that it gave, and one is taken.
"""

# mypy: disable-error-code="no-any-return"
# Fields of records are Any.

from __future__ import annotations

from typing import Any

from modelium.sim.jit.decorators import inlined
from modelium.sim.kernel.generate_blocks import acquire, blocks_for, find, give, take
from modelium.sim.kernel.generate_state import RUNNING, WAITING, Engines, Requests
from modelium.sim.kernel.heap import NEVER


@inlined
def plan(engines: Engines, requests: Requests, e: int, now: int) -> None:
    """Form the batch of the iteration that begins now and jump as far as it lasts."""
    engine = engines.engines[e]
    engine.prefilling = engine.prefill_held = engine.sum_cx = engine.sum_cc = 0
    preempted = _schedule_running(engines, requests, e)
    engine.settled = engine.decoding
    if not preempted:
        _schedule_waiting(engines, requests, e)
    engine.start_ps = now
    if engine.running == 0:
        engine.iterations = 0
        engine.due_ps = NEVER
        return
    _set_times(engines, engine)
    engine.least_left = _least(engines.left[e], engine.running - (engine.partial > 0))
    engine.iterations = 1 if engine.prefilling > 0 else _span(engines, e)
    engine.due_ps = now + duration(engine, engine.iterations)


@inlined
def duration(engine: Any, n: int) -> int:
    """Picoseconds of the first `n` iterations of the span: context grows by one a sequence each."""
    context = n * engine.context + engine.decoding * (n * (n - 1) // 2)
    return n * engine.base_ps + engine.rate_ps * context


@inlined
def iterations_until(engine: Any, now: int) -> int:
    """The fewest iterations of the span, at least one, that end at `now` or later."""
    low, high = 1, engine.iterations
    while low < high:
        middle = (low + high) // 2
        if engine.start_ps + duration(engine, middle) >= now:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def _schedule_running(engines: Engines, requests: Requests, e: int) -> bool:
    """One token for each decoding sequence, the next chunk for the one that still prefills.

    At most one sequence prefills between iterations, and it is the last: a chunk ends before its
    prompt only where it ends the budget. Returns whether something was preempted.
    """
    engine, room = engines.engines[e], engines.room[e]
    row = engines.rows[engine.row]
    decoding = engine.running - (engine.partial > 0)
    need = 0
    for i in range(decoding):
        need += room[i] == 0
    chunk = min(engine.partial, row.max_batched_tokens - decoding)
    need += _blocks_more(room[decoding], chunk, row.block_tokens) if chunk > 0 else 0
    preempted = need > engine.free_blocks
    if preempted:
        _make_room(engines, requests, e)
        decoding = engine.running - (engine.partial > 0)
        chunk = min(engine.partial, row.max_batched_tokens - decoding)
    else:
        take(engine, requests, need)
    for i in range(decoding):
        room[i] += row.block_tokens * (room[i] == 0) - 1
    engine.decoding = decoding
    engine.step_tokens = decoding
    engine.held_tokens += decoding
    if chunk > 0:
        r = engines.batch[e, decoding]
        _prefill(engine, requests.computed[r], chunk)
        requests.computed[r] += chunk
        room[decoding] = (room[decoding] - chunk) % row.block_tokens
        engine.partial -= chunk
    return preempted


@inlined
def _make_room(engines: Engines, requests: Requests, e: int) -> None:
    """KV blocks are short: serve the batch in order, and preempt from its end."""
    engine, room = engines.engines[e], engines.room[e]
    row = engines.rows[engine.row]
    i = 0
    while i < engine.running:
        tokens = 1
        if engine.partial > 0 and i == engine.running - 1:
            tokens = min(engine.partial, row.max_batched_tokens - i)
        need = _blocks_more(room[i], tokens, row.block_tokens)
        while need > engine.free_blocks and engine.running > i:
            _preempt(engines, requests, e)
        if engine.running > i:
            take(engine, requests, need)
        i += 1


@inlined
def _blocks_more(room: int, tokens: int, block_tokens: int) -> int:
    """Blocks that a sequence needs for `tokens` more, with `room` left in its last block."""
    return blocks_for(max(tokens - room, 0), block_tokens)


@inlined
def _preempt(engines: Engines, requests: Requests, e: int) -> None:
    """Send the last running request back to the front of the queue; it will be recomputed."""
    engine = engines.engines[e]
    row = engines.rows[engine.row]
    engine.running -= 1
    r = engines.batch[e, engine.running]
    if engine.partial > 0:
        engine.partial = 0
    else:
        requests.emitted[r] = max(requests.output[r], 1) - engines.left[e, engine.running]
        requests.computed[r] = requests.prompt[r] + requests.emitted[r] - 1
    requests.place[r] = WAITING
    requests.preemptions[r] += 1
    engine.preemptions += 1
    engine.held_tokens -= requests.computed[r]
    engine.queued_tokens += requests.prompt[r] + requests.emitted[r]
    blocks = blocks_for(requests.computed[r], row.block_tokens)
    give(engine, requests, r, blocks, row.prefix_caching)
    requests.next_in_queue[r] = engine.head
    if engine.waiting == 0:
        engine.tail = r
    engine.head = r
    engine.waiting += 1


@inlined
def _schedule_waiting(engines: Engines, requests: Requests, e: int) -> None:
    """Admit first come first served while the whole of each fits the budget, seats and blocks."""
    engine = engines.engines[e]
    row = engines.rows[engine.row]
    while engine.waiting > 0 and engine.running < row.max_num_seqs:
        budget = row.max_batched_tokens - engine.step_tokens
        r = engine.head
        known = requests.prompt[r] + requests.emitted[r]
        spare = engine.free_blocks - (row.watermark_blocks if engine.running > 0 else 0)
        if budget <= 0 or blocks_for(known, row.block_tokens) > spare:
            return
        _admit(engines, requests, e, r, known, budget)


@inlined
def _admit(engines: Engines, requests: Requests, e: int, r: int, known: int, budget: int) -> None:
    """Move the head of the queue into the batch; `known` tokens of it are to be computed."""
    engine = engines.engines[e]
    row = engines.rows[engine.row]
    engine.head = requests.next_in_queue[r]
    engine.waiting -= 1
    engine.queued_tokens -= known
    blocks, source = find(engines, engine, requests, r)
    hit = blocks * row.block_tokens
    chunk = min(known - hit, budget)
    blocks_needed = blocks_for(hit + chunk, row.block_tokens)
    acquire(engines, engine, requests, r, blocks, source, blocks_needed)
    place = engine.running
    engines.batch[e, place] = r
    engines.left[e, place] = max(requests.output[r], 1) - requests.emitted[r]
    engines.room[e, place] = blocks_needed * row.block_tokens - hit - chunk
    engine.running += 1
    engine.held_tokens += hit
    requests.place[r] = RUNNING
    requests.computed[r] = hit + chunk
    if requests.cached[r] < 0:
        requests.cached[r] = hit
    _prefill(engine, hit, chunk)
    engine.partial = known - hit - chunk


@inlined
def _prefill(engine: Any, context: int, chunk: int) -> None:
    """Count a sequence into the iteration that computes `chunk` tokens on top of `context`."""
    engine.prefilling += 1
    engine.step_tokens += chunk
    engine.held_tokens += chunk
    engine.prefill_held += context + chunk
    engine.sum_cx += chunk * context
    engine.sum_cc += chunk * chunk


@inlined
def _set_times(engines: Engines, engine: Any) -> None:
    """The iteration's time, and how it grows with the context while the batch stays as it is."""
    k, decoding = engine.row, engine.decoding
    engine.context = engine.held_tokens - engine.prefill_held
    if engine.prefilling == 0:
        engine.base_ps = (engines.decode_base[k, decoding] * engine.slow) >> 10
        engine.rate_ps = (engines.decode_kv[k, decoding] * engine.slow) >> 10
        return
    row = engines.rows[k]
    time = engines.mixed_base[k, engine.step_tokens] + row.mixed_decode * decoding
    time += row.mixed_prefill * engine.prefilling + row.mixed_kv * engine.context
    time += row.mixed_ctx * engine.sum_cx + row.mixed_sq * engine.sum_cc
    engine.base_ps = (time * engine.slow) >> 10
    engine.rate_ps = 0


@inlined
def _least(values: Any, n: int) -> int:
    least = values[0]
    for i in range(1, n):
        least = min(least, values[i])
    return least


@inlined
def _span(engines: Engines, e: int) -> int:
    """How many iterations until a sequence is complete or blocks run out.

    The first iteration has its blocks already. In `m` more, a sequence begins `m // block_tokens`
    blocks, and one more if its room is less than the remainder.
    """
    engine, room = engines.engines[e], engines.room[e]
    more, block = engine.least_left - 1, engines.rows[engine.row].block_tokens
    whole = engine.free_blocks // engine.decoding
    if more <= whole * block:
        return engine.least_left
    spare = engine.free_blocks - whole * engine.decoding
    low, high = 0, min(block - 1, more - whole * block)
    while low < high:
        middle = (low + high + 1) // 2
        begun = 0
        for i in range(engine.decoding):
            begun += room[i] < middle
        if begun <= spare:
            low = middle
        else:
            high = middle - 1
    return 1 + whole * block + low
