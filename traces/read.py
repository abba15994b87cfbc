"""Reading any trace: the format is told from what is in the file, not from its name."""

from __future__ import annotations

from pathlib import Path

from modelium.traces import own
from modelium.traces.source import PARQUET, head
from modelium.traces.trace import Trace


def read_trace(path: str | Path, *, seed: int = 0, model: str | None = None) -> Trace:
    """Read a trace."""
    path = Path(path)
    if head(path, 4) == PARQUET:
        return own.read_parquet(path, model)
    return own.read_csv(path, model)
