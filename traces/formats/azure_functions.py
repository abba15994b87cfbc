"""Azure Functions 2019 (counts per minute) and 2021 (invocations), and Iluvatar's samples.

A function stands for a model: `transform` maps many functions onto few models. Functions have no
token counts, so lengths are made up (option `lengths`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modelium.traces.columns import INT32_MAX, SECONDS, Name, Number
from modelium.traces.formats.asked import Asked, Start, names, numbers, spread
from modelium.traces.random_streams import stream
from modelium.traces.table import header, read_csv
from modelium.traces.trace import Labels, Trace

HASH_DIGITS = 12
"""Of 64: enough to tell functions apart, short enough to read."""


def recognises_2019(start: Start) -> bool:
    """HashOwner,HashApp,HashFunction,Trigger,1,2,...,1440"""
    return start.has("HashApp", "HashFunction", "1", "2")


def read_2019(path: Path, asked: Asked) -> Trace:
    """Each count becomes that many arrivals, uniform within its minute (Shahrad et al., 2020)."""
    minutes = [c for c in header(path) if c.isdigit()]
    count = Number("a whole number >= 0", whole=True, high=INT32_MAX, blank=0.0)
    hashes = {"HashApp": Name(), "HashFunction": Name()}
    optional = {"HashOwner": Name(required=False)}
    read = read_csv(path, {**hashes, **dict.fromkeys(minutes, count)}, optional)
    cells = [(m, np.flatnonzero(numbers(read[m]))) for m in minutes]  # nearly all are 0
    function = np.concatenate([rows for _, rows in cells])
    minute = np.repeat([float(m) - 1.0 for m, _ in cells], [len(rows) for _, rows in cells])
    counts = np.concatenate([numbers(read[m])[rows] for m, rows in cells]).astype(np.int64)
    counts = asked.thinned(path, counts)
    arrival_s = spread(counts, 60.0 * minute, 60.0, stream(asked.seed, "within minutes"))
    function = np.repeat(function, counts)
    model = _pairs(names(read["HashApp"]), names(read["HashFunction"]))
    labels = {}
    if "HashOwner" in read:
        labels["organization"] = _short(names(read["HashOwner"])).take(function)
    return asked.trace(
        path,
        arrival_s,
        model.take(function),
        scaled=True,
        notes=(f"{path}: arrivals are uniform within each minute (seed {asked.seed})",),
        labels=labels,
    )


def recognises_2021(start: Start) -> bool:
    """app,func,end_timestamp,duration"""
    return start.has("app", "func", "end_timestamp", "duration")


def read_2021(path: Path, asked: Asked) -> Trace:
    """An invocation arrives at its end less its duration (Zhang et al., SOSP 2021)."""
    any_time = Number("a number of seconds", low=-np.inf)
    read = read_csv(
        path, {"app": Name(), "func": Name(), "end_timestamp": any_time, "duration": SECONDS}
    )
    arrival_s = numbers(read["end_timestamp"]) - numbers(read["duration"])
    return asked.trace(path, arrival_s, _pairs(names(read["app"]), names(read["func"])))


def recognises_iluvatar(start: Start) -> bool:
    """func_name,invoke_time_ms"""
    return start.has("func_name", "invoke_time_ms")


def read_iluvatar(path: Path, asked: Asked) -> Trace:
    """Invocations in milliseconds from the start, as Iluvatar's load generator takes them."""
    milliseconds = Number("a number of milliseconds >= 0")
    read = read_csv(path, {"func_name": Name(), "invoke_time_ms": milliseconds})
    return asked.trace(path, numbers(read["invoke_time_ms"]) / 1e3, names(read["func_name"]))


def _pairs(apps: Labels, functions: Labels) -> Labels:
    """Name each request's model app/function; a function's hash may recur in another app."""
    size = len(functions.names)
    pairs, codes = np.unique(
        apps.codes.astype(np.int64) * size + functions.codes, return_inverse=True
    )
    listed = [f"{_cut(apps.names[p // size])}/{_cut(functions.names[p % size])}" for p in pairs]
    return Labels.of(listed).take(codes)


def _short(labels: Labels) -> Labels:
    return Labels(labels.codes, tuple(_cut(name) for name in labels.names))


def _cut(name: str) -> str:
    return name[:HASH_DIGITS] if len(name) == 64 else name
