"""The sample of Chatbot Arena's log that came with VTC (Sheng et al., OSDI 2024), as CSV."""

from __future__ import annotations

from pathlib import Path

from modelium.traces.columns import SECONDS, WHOLE, Columns, Name
from modelium.traces.formats.asked import Asked, Start, names, numbers, whole
from modelium.traces.table import read_csv
from modelium.traces.trace import Trace


def recognises(start: Start) -> bool:
    """req_id,model,req_time_s,prompt_len,output_len"""
    return start.has("model", "req_time_s", "prompt_len", "output_len")


def read(path: Path, asked: Asked) -> Trace:
    """Popularity and lengths are real; arrivals are a random sample and so look like Poisson."""
    columns: Columns = {
        "req_time_s": SECONDS,
        "model": Name(),
        "prompt_len": WHOLE,
        "output_len": WHOLE,
    }
    read = read_csv(path, columns)
    tokens = whole(read["prompt_len"]), whole(read["output_len"])
    return asked.trace(path, numbers(read["req_time_s"]), names(read["model"]), tokens)
