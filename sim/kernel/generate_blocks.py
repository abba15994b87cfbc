"""KV blocks of an engine: how many are free, and what is still cached in them.

As in vLLM's block pool (v1/core/block_pool.py, `FreeKVCacheBlockQueue`), blocks that are freed
keep their content and join a queue at its newest end, the last block of a sequence first; new
content goes into the oldest of the queue. A request whose prompt begins with what is in free
blocks takes those over. So the queue is a list of runs of blocks, each freed by one request, and a
run is eaten up from its sequence's end: what is left of it is a prefix. A run's node in the list is
the request itself.

What can be found again: a request's own sequence after its preemption, and the sequence of the
last request that was admitted with the same prefix on the same engine. While that one still runs,
its prompt counts as cached too, though the blocks are not shared: each request holds its own.
"""

# mypy: disable-error-code="no-any-return"
# Fields of records are Any.

from __future__ import annotations

from typing import Any

from modelium.sim.jit.decorators import inlined
from modelium.sim.kernel.generate_state import RUNNING, WAITING, Engines, Requests


@inlined
def blocks_for(tokens: int, block_tokens: int) -> int:
    """How many blocks hold `tokens`."""
    return (tokens + block_tokens - 1) // block_tokens


@inlined
def take(engine: Any, requests: Requests, n: int) -> None:
    """Use `n` free blocks for new content: blank ones, then the longest unused."""
    engine.free_blocks -= n
    blank = min(n, engine.blank_blocks)
    engine.blank_blocks -= blank
    n -= blank
    while n > 0:
        r = engine.oldest
        eaten = min(n, requests.blocks[r])
        n -= eaten
        _shorten(engine, requests, r, eaten)


@inlined
def give(engine: Any, requests: Requests, r: int, n: int, prefix_caching: int) -> None:
    """Free the `n` blocks of request `r`."""
    engine.free_blocks += n
    if not prefix_caching:
        engine.blank_blocks += n
        return
    last = engine.newest
    if last >= 0 and _is_lost(requests, last) and _is_lost(requests, r):
        requests.blocks[last] += n
        return
    requests.blocks[r] = n
    requests.older[r] = last
    requests.newer[r] = -1
    if last < 0:
        engine.oldest = r
    else:
        requests.newer[last] = r
    engine.newest = r


@inlined
def find(engines: Engines, engine: Any, requests: Requests, r: int) -> tuple[int, int]:
    """How many full blocks of `r`'s tokens are cached, and in whose run they are (-1: in none).

    At least one token is always computed, to have something to sample from.
    """
    row = engines.rows[engine.row]
    block = row.block_tokens
    if not row.prefix_caching:
        return 0, -1
    most = requests.prompt[r] + requests.emitted[r] - 1
    hit, source = min(requests.blocks[r], min(requests.computed[r], most) // block), r
    prefix = _prefix(requests, r)
    if prefix < 0:
        known = min(requests.known_hit[r], most) // block
        return (known, -1) if known > hit else (hit, source)
    other = _last_with(engines, engine.life, prefix)
    if other >= 0 and other != r:
        shared = min(min(requests.prefix_tokens[r], requests.computed[other]), most) // block
        runs = requests.place[other] == RUNNING
        if not runs:
            shared = min(shared, requests.blocks[other])
        if shared > hit:
            hit, source = shared, -1 if runs else other
    return hit, source


@inlined
def acquire(
    engines: Engines, engine: Any, requests: Requests, r: int, hit: int, source: int, n: int
) -> None:
    """Give `r` its first `n` blocks: `hit` from the run of `source`, the rest for new content."""
    if hit > 0 and source >= 0:
        engine.free_blocks -= hit
        _shorten(engine, requests, source, hit)
        n -= hit
    rest = requests.blocks[r]
    if rest > 0:  # what r left behind earlier and does not use: r's node leaves the queue
        engine.blank_blocks += rest
        _shorten(engine, requests, r, rest)
    take(engine, requests, n)
    prefix = _prefix(requests, r)
    if prefix >= 0:
        _remember(engines, engine.life, prefix, r)


@inlined
def _shorten(engine: Any, requests: Requests, r: int, n: int) -> None:
    """Take `n` blocks out of the run of `r`; an empty run leaves the queue."""
    requests.blocks[r] -= n
    if requests.blocks[r] > 0:
        return
    older, newer = requests.older[r], requests.newer[r]
    if older < 0:
        engine.oldest = newer
    else:
        requests.newer[older] = newer
    if newer < 0:
        engine.newest = older
    else:
        requests.older[newer] = older


@inlined
def _is_lost(requests: Requests, r: int) -> bool:
    """Nobody will ever find what `r` left in its blocks."""
    return _prefix(requests, r) < 0 and requests.place[r] != WAITING


@inlined
def _prefix(requests: Requests, r: int) -> int:
    return requests.prefix[r] if requests.prefix.shape[0] > 0 else -1


@inlined
def _place_of(engines: Engines, life: int, prefix: int) -> int:
    """Where in the hash table a prefix is, or would be (linear probing)."""
    key = (life << 32) | prefix
    mask = engines.prefix_key.shape[0] - 1
    k = ((key * 0x2545F4914F6CDD1D) >> 33) & mask
    while engines.prefix_key[k] != 0 and engines.prefix_key[k] != key:
        k = (k + 1) & mask
    return k


@inlined
def _last_with(engines: Engines, life: int, prefix: int) -> int:
    k = _place_of(engines, life, prefix)
    return engines.prefix_of[k] if engines.prefix_key[k] != 0 else -1


@inlined
def _remember(engines: Engines, life: int, prefix: int, r: int) -> None:
    k = _place_of(engines, life, prefix)
    if engines.prefix_key[k] == 0:
        if engines.counters[1] + 1 >= engines.prefix_key.shape[0]:
            return  # full: one place stays empty, so that searches end
        engines.counters[1] += 1
        engines.prefix_key[k] = (life << 32) | prefix
    engines.prefix_of[k] = r
