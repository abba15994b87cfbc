"""Ours against theirs, metric by metric: what cases are read with, and what they end in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import ConfigError
from modelium.sim.fit.tables import Columns

Floats = NDArray[np.float64]
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


def read_config(file: Path, *needed: str) -> dict[str, Any]:
    """A JSON object that has these keys. Raises ConfigError saying which are missing."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds a {type(config).__name__}, expected an object")
    if missing := [name for name in needed if config.get(name) is None]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    return config


def by_arrival(rows: Columns, file: Path) -> Columns:
    """Requests in order of arrival, those of one instant by `id`, however the file has them."""
    if "arrival_s" not in rows:
        return rows  # whoever asks for the column says so
    if not len(rows["arrival_s"]):
        raise ConfigError(f"{file} has no requests")
    order = np.lexsort((rows.get("id", np.arange(len(rows["arrival_s"]))), rows["arrival_s"]))
    return {name: values[order] for name, values in rows.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One metric under one policy, if the case has policies."""

    policy: str | None
    metric: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        """Ours less theirs."""
        return self.ours - self.theirs

    @property
    def relative(self) -> float | None:
        """The difference as a fraction of theirs; None where that is zero."""
        return self.difference / self.theirs if self.theirs else None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"difference": self.difference, "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A case's rows, and a line on what they rest on."""

    basis: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Times:
    """When requests arrived, and had their first and their last token, in seconds."""

    arrival_s: Floats
    first_s: Floats
    last_s: Floats
    output_tokens: Floats

    def metrics(self) -> Iterator[tuple[str, float]]:
        """Mean and quantiles of TTFT, TPOT (of requests with two tokens or more) and E2E."""
        several = self.output_tokens > 1
        tokens_after = np.maximum(self.output_tokens - 1, 1)
        columns = {
            "ttft": self.first_s - self.arrival_s,
            "tpot": ((self.last_s - self.first_s) / tokens_after)[several],
            "e2e": self.last_s - self.arrival_s,
        }
        for name, seconds in columns.items():
            yield f"{name}_mean", float(seconds.mean())
            for quantile, percent in QUANTILES.items():
                yield f"{name}_{quantile}", float(np.percentile(seconds, percent))


def compare(ours: Times, theirs: Times) -> list[Row]:
    """Every latency metric of both."""
    pairs = zip(ours.metrics(), theirs.metrics(), strict=True)
    return [Row(None, metric, mine, other) for (metric, mine), (_, other) in pairs]
