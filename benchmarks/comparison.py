"""Ours against theirs, metric by metric: what every kind of case ends in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


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
