"""Azure LLM inference traces 2023 (Splitwise) and 2024 (DynamoLLM): one service a file."""

from __future__ import annotations

from pathlib import Path

from modelium.traces.columns import WHOLE, Clock, Columns
from modelium.traces.formats.asked import Asked, Start, numbers, whole
from modelium.traces.table import read_csv
from modelium.traces.trace import Trace


def recognises(start: Start) -> bool:
    """TIMESTAMP,ContextTokens,GeneratedTokens"""
    return start.has("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, asked: Asked) -> Trace:
    """Wall-clock times become seconds since the first request; all are for one model."""
    columns: Columns = {"TIMESTAMP": Clock(), "ContextTokens": WHOLE, "GeneratedTokens": WHOLE}
    read = read_csv(path, columns)
    tokens = whole(read["ContextTokens"]), whole(read["GeneratedTokens"])
    return asked.trace(path, numbers(read["TIMESTAMP"]), tokens=tokens)
