"""Lists of lengths: Vidur's CSV, result files of serving benchmarks, ShareGPT's conversations.

Where a list has no times, requests arrive as a Poisson process at `RATE_PER_S`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.columns import SECONDS, WHOLE, Number
from modelium.traces.formats.asked import Asked, Start, numbers, whole
from modelium.traces.formats.rows import Row, checked, column, objects, read_lines, read_whole
from modelium.traces.lengths import Ints
from modelium.traces.random_streams import stream
from modelium.traces.table import read_csv
from modelium.traces.trace import Trace

RATE_PER_S = 1.0
CHARACTERS_PER_TOKEN = 4
PAIRS = (
    ("prompt_tokens", "output_tokens"),
    ("input_tokens", "output_tokens"),
    ("input_toks", "output_toks"),
    ("prompt_len", "output_len"),
    ("input_len", "output_len"),
    ("input_length", "output_length"),
    ("prompt_tokens", "completion_tokens"),
)
"""Names that benchmarks give to the lengths of a request."""
TIMES = ("arrival_s", "arrival_time", "start_time", "timestamp")
"""Names that they give to its time in seconds."""


def recognises_vidur(start: Start) -> bool:
    """num_prefill_tokens,num_decode_tokens (and maybe arrived_at)"""
    return start.has("num_prefill_tokens", "num_decode_tokens")


def read_vidur(path: Path, asked: Asked) -> Trace:
    """Lengths of prompts (prefill) and outputs (decode) (Agrawal et al., MLSys 2024)."""
    pair = {"num_prefill_tokens": WHOLE, "num_decode_tokens": WHOLE}
    read = read_csv(path, pair, {"arrived_at": SECONDS})
    times = numbers(read["arrived_at"]) if "arrived_at" in read else None
    tokens = whole(read["num_prefill_tokens"]), whole(read["num_decode_tokens"])
    return _trace(path, asked, tokens, times)


def recognises_json(start: Start) -> bool:
    """JSON in which one of the known kinds of length is named."""
    if start.bytes.lstrip()[:1] not in (b"{", b"["):
        return False
    named = set(re.findall(rb'"(\w+)"\s*:', start.bytes))
    pairs = [{a.encode(), b.encode()} for a, b in (*PAIRS, ("input_lens", "output_lens"))]
    return b"conversations" in named or any(pair <= named for pair in pairs)


def read_json(path: Path, asked: Asked) -> Trace:
    """A benchmark's result (`input_lens`), requests a line or in a list, or ShareGPT."""
    value = _value(path)
    if isinstance(value, dict):
        return _result(path, asked, value)
    rows = objects(path, value)
    if rows and "conversations" in rows[0]:
        return _sharegpt(path, asked, rows)
    pair = next((p for p in PAIRS if rows and set(p) <= set(rows[0])), None)
    if pair is None:
        known = ", ".join(f"{a} and {b}" for a, b in PAIRS)
        raise TraceError(f"{path}, row 1: names no lengths, expected one of: {known}")
    prompt, output = (column(path, rows, name, WHOLE).astype(np.int32) for name in pair)
    time = next((name for name in TIMES if name in rows[0]), None)
    return _trace(path, asked, (prompt, output), _since_first(path, rows, time))


def _value(path: Path) -> Any:
    try:
        return read_whole(path)
    except TraceError as whole_file:
        try:
            return read_lines(path)
        except TraceError:
            raise whole_file from None


def _result(path: Path, asked: Asked, result: Row) -> Trace:
    """What `vllm bench serve --save-detailed` and SGLang's bench_serving write."""
    for name in ("input_lens", "output_lens"):
        if not isinstance(result.get(name), list):
            raise TraceError(f"{path}: {name} is {result.get(name)!r:.40}, expected a list")
    prompt = checked(path, "input_lens", result["input_lens"], WHOLE).astype(np.int32)
    output = checked(path, "output_lens", result["output_lens"], WHOLE).astype(np.int32)
    if len(prompt) != len(output):
        raise TraceError(f"{path} has {len(prompt)} input_lens and {len(output)} output_lens")
    if not result.get("start_times"):
        return _trace(path, asked, (prompt, output), None)
    anything = Number("a number of seconds", low=-np.inf)
    times_s = checked(path, "start_times", result["start_times"], anything)
    if len(times_s) != len(prompt):
        raise TraceError(f"{path} has {len(prompt)} input_lens and {len(times_s)} start_times")
    return _trace(path, asked, (prompt, output), times_s - times_s.min())


def _since_first(path: Path, rows: Sequence[Row], name: str | None) -> NDArray[np.float64] | None:
    if name is None:
        return None
    times = column(path, rows, name, SECONDS)
    return times if name == "arrival_s" else times - times.min()


def _sharegpt(path: Path, asked: Asked, rows: Sequence[Row]) -> Trace:
    """The first question and its answer of each conversation, as serving benchmarks use them."""
    texts = [
        [str(turn.get("value", "")) for turn in row.get("conversations", [])[:2]] for row in rows
    ]
    pairs = np.array([[_tokens(t) for t in two] for two in texts if len(two) == 2], np.int32)
    pairs = pairs.reshape(-1, 2)
    notes = [f"{path}: tokens are estimated as characters / {CHARACTERS_PER_TOKEN}"]
    if len(pairs) < len(rows):
        notes.append(f"{path}: {len(rows) - len(pairs):,} conversations without an answer left out")
    return _trace(path, asked, (pairs[:, 0], pairs[:, 1]), None, tuple(notes))


def _tokens(text: str) -> int:
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def _trace(
    path: Path,
    asked: Asked,
    tokens: tuple[Ints, Ints],
    times_s: NDArray[np.float64] | None,
    notes: tuple[str, ...] = (),
) -> Trace:
    if times_s is None:
        gaps = stream(asked.seed, "arrivals").exponential(1.0 / RATE_PER_S, len(tokens[0]))
        times_s = np.cumsum(gaps)
        notes += (f"{path} has no times: Poisson at {RATE_PER_S:g}/s (seed {asked.seed})",)
    return asked.trace(path, times_s, tokens=tokens, notes=notes)
