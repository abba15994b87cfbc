"""Mooncake (Qin et al., FAST 2025): a line of JSON a request, with the hashes of its blocks.

Equal hashes mean equal blocks *and* equal blocks before them, so a request shares its first
k blocks with another exactly if it has that one's k-th hash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modelium.errors import TraceError
from modelium.traces.columns import WHOLE, Number
from modelium.traces.formats.asked import Asked, Start
from modelium.traces.formats.rows import Row, column, read_lines
from modelium.traces.lengths import Ints
from modelium.traces.trace import Labels, Trace

BLOCK_TOKENS = 512


def recognises(start: Start) -> bool:
    """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}"""
    try:
        row = json.loads(start.bytes.lstrip().partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(row, dict) and {"timestamp", "input_length", "output_length"} <= set(row)


def read(path: Path, asked: Asked) -> Trace:
    """Timestamps are milliseconds; shared blocks become `prefix_id` and `prefix_tokens`."""
    rows = read_lines(path)
    milliseconds = Number("a number of milliseconds >= 0")
    arrival_s = column(path, rows, "timestamp", milliseconds) / 1e3
    prompt = column(path, rows, "input_length", WHOLE).astype(np.int32)
    output = column(path, rows, "output_length", WHOLE).astype(np.int32)
    order = np.argsort(arrival_s, kind="stable")
    prefix, shared = prefixes([_chain(path, int(i) + 1, rows[i]) for i in order])
    # Only now, in order of arrival, may thinning or other lengths change what is shared.
    trace = asked.trace(path, arrival_s[order], tokens=(prompt[order], output[order]))
    if len(trace) < len(rows):
        return trace.noting(f"{path}: shared prefixes are left out of a thinned trace")
    return replace(
        trace,
        prefix_id=prefix,
        prefix_tokens=np.minimum(shared * BLOCK_TOKENS, trace.prompt_tokens).astype(np.int32),
    )


def _chain(path: Path, row: int, request: Row) -> list[int]:
    chain = request.get("hash_ids", [])
    if isinstance(chain, list) and all(isinstance(block, int) for block in chain):
        return chain
    raise TraceError(f"{path}, row {row:,}: hash_ids is {chain!r:.40}, expected a list of numbers")


def prefixes(chains: Sequence[Sequence[int]]) -> tuple[Labels, Ints]:
    """Group requests that continue each other; also how many blocks each shares in its group.

    A request continues the latest earlier one that has its deepest block seen so far, if at least
    half of that one's blocks are shared; so a short common preamble does not make one group of
    all. Requests that share with none get no group and 0 blocks.
    """
    latest: dict[int, int] = {}
    group = list(range(len(chains)))
    shared = np.zeros(len(chains), np.int32)
    for r, chain in enumerate(chains):
        depth = next((k for k, block in enumerate(chain) if block not in latest), len(chain))
        if depth:
            parent = latest[chain[depth - 1]]
            if 2 * depth >= len(chains[parent]):
                group[r] = group[parent]
                shared[r] = depth
                shared[parent] = max(shared[parent], depth)
        latest.update(dict.fromkeys(chain, r))
    names = [f"p{g}" if s else None for g, s in zip(group, shared.tolist(), strict=True)]
    return Labels.of(names), shared
