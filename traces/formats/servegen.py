"""ServeGen (Xiang et al., NSDI 2026): rate, burstiness and lengths per client, not requests.

A client stands for a model here. A pool comes as a folder or .tar.gz of chunk-N-trace.csv (a row
a window: start, rate, CV of the gaps, family, two parameters) and chunk-N-dataset.json (densities
of lengths), or as a table of rates, windows by clients.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.arrivals import Floats, gamma, poisson, weibull
from modelium.traces.columns import SECONDS, Name, Number, wrong_cell
from modelium.traces.formats.asked import Asked, Start, numbers, stem
from modelium.traces.formats.servegen_lengths import Densities
from modelium.traces.random_streams import stream
from modelium.traces.source import opened
from modelium.traces.table import header, read_csv
from modelium.traces.trace import Labels, Trace

WINDOW_S = 600.0
CV_MAX = 1000.0
CHUNK = re.compile(r"chunk-(\w+)-(trace\.csv|dataset\.json)$")
FAMILIES = ("Gamma", "Weibull", "")
FAMILY = Name("'Gamma', 'Weibull' or nothing")
COLUMNS = {
    "timestamp": SECONDS,
    "rate": Number("a number of requests per second >= 0"),
    "cv": Number("a number >= 0", high=CV_MAX, blank=1.0),
}
DATASET_REQUESTS = 10_000


@dataclass(frozen=True)
class Client:
    """One client's load: a value for each window."""

    name: str
    start_s: Floats
    rate_per_s: Floats
    cv: Floats
    weibull: NDArray[np.bool_]


def recognises(start: Start) -> bool:
    """A folder or archive with a file called chunk-N-trace.csv or chunk-N-dataset.json."""
    if not start.path.is_dir() and start.bytes[257:262] != b"ustar":
        return False
    return any(True for _ in _chunks(start.path, ("trace.csv", "dataset.json"), texts=False))


def read(path: Path, asked: Asked) -> Trace:
    """Each window gets a renewal process of its family, rate and CV, stationary at its start.

    Rates are multiplied by `scale` and keep their CV. Lengths come from the densities in the same
    place, if any. Densities alone make a list of `DATASET_REQUESTS` requests, Poisson at 1/s.
    """
    densities = Densities.of((name, text) for name, _, text in _chunks(path, ("dataset.json",)))
    if densities.clients and asked.lengths is None:
        asked = replace(asked, lengths=densities)
    clients = [_client(*chunk) for chunk in _chunks(path, ("trace.csv",))]
    if clients:
        asked.check_size(path, asked.scale * sum(_expected(client) for client in clients))
        times = [_arrivals(client, asked) for client in clients]
        note = f"{path}: arrivals are renewals of each window's rate and CV (seed {asked.seed})"
    elif not densities.clients:
        raise TraceError(f"{path} holds neither rates nor densities of any client")
    else:
        rng = stream(asked.seed, "arrivals")
        share = max(1, DATASET_REQUESTS // len(densities.names))
        times = [np.cumsum(rng.exponential(len(densities.names), share)) for _ in densities.names]
        note = f"{path} has lengths only: Poisson at 1/s (seed {asked.seed})"
    names = [client.name for client in clients] or list(densities.names)
    return _pool(path, asked, names, times, note)


def recognises_table(start: Start) -> bool:
    """,0,1,10,...: windows by clients"""
    return (
        len(start.columns) > 1
        and start.columns[0] == ""
        and all(cell.isdigit() for cell in start.columns[1:])
    )


def read_table(path: Path, asked: Asked) -> Trace:
    """Each window gets a Poisson process of its rate (the table has no CV)."""
    found = header(path)
    read = read_csv(path, dict.fromkeys(found, SECONDS))
    start_s = numbers(read[""])
    pool = stem(path).removeprefix("rates_10min_")
    flat = np.ones_like(start_s), np.zeros(len(start_s), bool)
    clients = [Client(f"{pool}-{c}", start_s, numbers(read[c]), *flat) for c in found if c]
    asked.check_size(path, asked.scale * sum(_expected(client) for client in clients))
    times = [_arrivals(client, asked) for client in clients]
    note = f"{path}: arrivals are Poisson within each window (seed {asked.seed})"
    return _pool(path, asked, [c.name for c in clients], times, note)


def _pool(path: Path, asked: Asked, names: list[str], times: list[Floats], note: str) -> Trace:
    counts = [len(t) for t in times]
    if not sum(counts):
        raise TraceError(f"{path}: no request falls into any window at --scale {asked.scale:g}")
    codes = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    model = Labels(codes, tuple(names)).take(np.arange(len(codes)))
    return asked.trace(path, np.concatenate(times), model, scaled=True, notes=(note,))


def _client(name: str, where: str, text: str) -> Client:
    rows = list(csv.reader(io.StringIO(text)))
    if rows and not SECONDS.accepts(rows[0][0]):
        rows = rows[1:]
    for number, cells in enumerate(rows, 1):
        if len(cells) < 4:
            raise TraceError(f"{where}, row {number:,}: has {len(cells)} columns, expected 6")
        for (column, kind), cell in zip(COLUMNS.items(), cells, strict=False):
            if not kind.accepts(cell):
                raise wrong_cell(where, number, column, cell, kind)
        if cells[3] not in FAMILIES:
            raise wrong_cell(where, number, "family", cells[3], FAMILY)
    return Client(
        name,
        np.array([float(cells[0]) for cells in rows]),
        np.array([float(cells[1]) for cells in rows]),
        np.array([float(cells[2] or 0) or 1.0 for cells in rows]),
        np.array([cells[3] == "Weibull" for cells in rows], bool),
    )


def _width_s(start_s: Floats) -> float:
    return float(np.diff(start_s).min()) if len(start_s) > 1 else WINDOW_S


def _expected(client: Client) -> float:
    return float(client.rate_per_s.sum()) * _width_s(client.start_s)


def _arrivals(client: Client, asked: Asked) -> Floats:
    rng = stream(asked.seed, "arrivals", client.name)
    width_s = _width_s(client.start_s)
    parts = [np.empty(0)]
    for i in np.flatnonzero(client.rate_per_s).tolist():
        rate, cv = asked.scale * float(client.rate_per_s[i]), float(client.cv[i])
        if client.weibull[i]:
            times = weibull(rate, cv, width_s, rng)
        elif cv == 1.0:
            times = poisson(rate, width_s, rng)
        else:
            times = gamma(rate, cv, width_s, rng)
        parts.append(float(client.start_s[i]) + times)
    return np.concatenate(parts)


def _chunks(
    path: Path, kinds: tuple[str, ...], texts: bool = True
) -> Iterator[tuple[str, str, str]]:
    """Name of the client, place of the file and its text, for each file of these kinds."""
    if path.is_dir():
        # `walk`, unlike `rglob`, goes on when a folder is gone or closed to us.
        found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        for file in sorted(file for file in found if file.name.startswith("chunk-")):
            if (match := CHUNK.search(file.name)) and match[2] in kinds:
                yield f"{file.parent.name}-{match[1]}", str(file), file.read_text() if texts else ""
        return
    import tarfile  # takes longer than to see that a file is of another format

    try:
        with opened(path) as stream_, tarfile.open(fileobj=stream_, mode="r|") as archive:
            for member in archive:
                if (match := CHUNK.search(member.name)) and match[2] in kinds:
                    pool = PurePosixPath(member.name).parent.name
                    file_ = archive.extractfile(member) if texts else None
                    text = file_.read().decode() if file_ else ""
                    yield f"{pool}-{match[1]}", f"{path}:{member.name}", text
    except tarfile.TarError as error:
        raise TraceError(f"{path} is cut short or damaged ({error}). Copy it again.") from error
