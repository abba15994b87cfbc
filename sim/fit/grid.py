"""The steps that a fit is for: batches that a serving engine meets and that a GPU can hold.

Published profiles reach from 16 to 131,072 tokens of context in equal factors. Fitted to all of
that, coefficients follow contexts that no batch of the size can have in memory, and are several per
cent off where engines work. So a fit takes contexts of 128 to 4,096 tokens (p1 to p99 of prompt
plus answer in the Azure 2023 conversation trace) in batches that fit into the KV pool.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from modelium import catalog
from modelium.catalog.fleet import DEFAULT_SHARE

MIN_CONTEXT, MAX_CONTEXT = 128, 4096
MAX_DECODE = 256
"""vLLM's default `max_num_seqs`."""

DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (128, 256, 512, 1024, 1536, 2048, 3072, 4096)
CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
COMPUTED = (0, 512, 1024, 2048, 4096)
"""Tokens of context that a chunk finds computed already."""

Floats = NDArray[np.float64]


def kv_pool_tokens(model: str, gpu: str, tp: int) -> int:
    """Tokens of KV beside the weights on `tp` GPUs at vLLM's default memory share; or negative."""
    facts = catalog.model(model)
    usable = DEFAULT_SHARE * catalog.gpu(gpu).memory_bytes * tp - facts.weights_bytes
    return int(usable // facts.kv_bytes_per_token)


def is_met(decode: Floats, context: Floats, computed: Floats, pool: int) -> NDArray[np.bool_]:
    """Which batches of `decode` sequences of `context` tokens each are ones to fit to."""
    held = (decode == 0) | ((context >= MIN_CONTEXT) & (context <= MAX_CONTEXT))
    fits = decode * context + computed <= pool
    met: NDArray[np.bool_] = held & fits & (decode <= MAX_DECODE) & (computed <= MAX_CONTEXT)
    return met


def batches(pool: int) -> tuple[Floats, Floats, Floats, Floats]:
    """The grid where a profile has none of its own: D, context of each, chunk, and computed."""
    decode_only = list(product(DECODES, CONTEXTS, [0], [0]))
    prefill_only = list(product([0], [0], CHUNKS, COMPUTED))
    mixed = list(product(DECODES, CONTEXTS, CHUNKS, COMPUTED))
    columns = np.array(decode_only + prefill_only + mixed, dtype=float).T
    keep = np.flatnonzero(is_met(columns[0], columns[1], columns[3], pool))
    decode, context, chunk, computed = columns.take(keep, axis=1)
    return decode, context, chunk, computed


def padded(tokens: Floats) -> Floats:
    """Rows that vLLM computes for so many tokens: up to 512 it replays CUDA graphs of fixed sizes.

    Those are 1, 2, 4, multiples of 8 up to 256 and multiples of 16 beyond (vLLM,
    `cudagraph_capture_sizes`).
    """
    few = 2 ** np.ceil(np.log2(np.maximum(tokens, 1)))
    by_8, by_16 = np.ceil(tokens / 8) * 8, np.ceil(tokens / 16) * 16
    sizes = [few, by_8, by_16]
    return np.select([tokens <= 4, tokens <= 256, tokens <= 512], sizes, tokens)
