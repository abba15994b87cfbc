"""BurstGPT (Wang et al., KDD 2025): a campus's calls of GPT-3.5 and GPT-4."""

from __future__ import annotations

from pathlib import Path

from modelium.traces.columns import SECONDS, WHOLE, Columns, Name
from modelium.traces.formats.asked import Asked, Start, names, numbers, whole
from modelium.traces.table import read_csv
from modelium.traces.trace import Trace


def recognises(start: Start) -> bool:
    """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"""
    return start.has("Timestamp", "Model", "Request tokens", "Response tokens")


def read(path: Path, asked: Asked) -> Trace:
    """Times are seconds from the start; failed calls (no response tokens) stay, as load.

    The log type becomes the SLO class, the session (in newer files) the session.
    """
    columns: Columns = {
        "Timestamp": SECONDS,
        "Model": Name(),
        "Request tokens": WHOLE,
        "Response tokens": WHOLE,
    }
    kept = {"Log Type": "slo_class", "Session ID": "session"}
    read = read_csv(path, columns, dict.fromkeys(kept, Name(required=False)))
    tokens = whole(read["Request tokens"]), whole(read["Response tokens"])
    failed = int((tokens[1] == 0).sum())
    note = f"{path}: {failed:,} failed calls have 0 output tokens; they stay" if failed else ""
    labels = {kept[k]: names(v) for k, v in read.items() if k in kept}
    return asked.trace(
        path,
        numbers(read["Timestamp"]),
        names(read["Model"]),
        tokens,
        notes=(note,) if note else (),
        labels=labels,
    )
