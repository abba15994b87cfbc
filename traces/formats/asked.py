"""What every format's reader gets and how it hands its columns over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.lengths import Ints, Lengths, Lognormal, draw_lengths
from modelium.traces.random_streams import stream
from modelium.traces.source import head
from modelium.traces.table import header_of
from modelium.traces.trace import MAX_REQUESTS, Labels, Trace


@dataclass(frozen=True)
class Start:
    """The beginning of a file, by which its format is recognised."""

    path: Path

    @cached_property
    def bytes(self) -> bytes:
        """The first bytes, unpacked; none of a folder."""
        return b"" if self.path.is_dir() else head(self.path)

    @cached_property
    def columns(self) -> list[str]:
        """The cells of the first line, if that can be a line of CSV."""
        return header_of(self.bytes)

    def has(self, *columns: str) -> bool:
        """Are all these in the first line?"""
        return set(columns) <= set(self.columns)


@dataclass(frozen=True)
class Asked:
    """How the user wants a file to be read."""

    seed: int = 0
    """Of every rule that makes up what the file does not say."""
    model: str | None = None
    """Name for requests of a format that names none; None: the file's name."""
    lengths: Lengths | None = None
    """Use these in place of the file's; None: the file's, or `Lognormal()` if it has none."""
    scale: float = 1.0
    """Share of the load to keep, 0 to 1."""

    def thinned(self, path: Path, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts after keeping each request with probability `scale`."""
        self.check_size(path, float(counts.sum()) * self.scale)
        if self.scale == 1.0:
            return counts
        return stream(self.seed, "thin").binomial(counts, self.scale)

    def check_size(self, path: Path, expected: float) -> None:
        """Refuse to make up more requests than memory holds."""
        if expected > MAX_REQUESTS:
            share = 10 ** np.floor(np.log10(MAX_REQUESTS / 10 / (expected / self.scale)))
            raise TraceError(
                f"{path} stands for about {expected:,.0f} requests, more than {MAX_REQUESTS:,}: "
                f"keep a share of them (--scale {share:g})"
            )

    def trace(
        self,
        path: Path,
        arrival_s: NDArray[np.float64],
        model: Labels | None = None,
        tokens: tuple[Ints, Ints] | None = None,
        *,
        scaled: bool = False,
        notes: tuple[str, ...] = (),
        labels: Mapping[str, Labels] | None = None,
    ) -> Trace:
        """Put a trace together: missing lengths made up, thinned, sorted, from 0 at the earliest.

        `scaled`: the reader has applied `scale` itself.
        """
        if not len(arrival_s):
            raise TraceError(f"{path} holds no requests")
        model = model or Labels.constant(self.model or stem(path), len(arrival_s))
        arrival_s = arrival_s - min(arrival_s.min(), 0.0)
        blank = np.zeros(len(arrival_s), np.int32)
        made = Trace(arrival_s, model, *(tokens or (blank, blank)), source=str(path))
        made = made.labelled(labels or {})
        asked = self if not scaled else replace(self, scale=1.0)
        if tokens is None and self.lengths is None:
            asked = replace(asked, lengths=Lognormal())
        return asked.applied(made.noting(*notes).in_order())

    def applied(self, trace: Trace) -> Trace:
        """The trace with these lengths and this share of its requests."""
        if self.lengths is not None:
            prompt, output = draw_lengths(self.lengths, trace.model, self.seed)
            trace = replace(trace, prompt_tokens=prompt, output_tokens=output)
            trace = trace.noting(f"{trace.source}: lengths are not the file's: {self.lengths}")
        if self.scale == 1.0:
            return trace
        keep = stream(self.seed, "thin").uniform(size=len(trace)) < self.scale
        if not keep.any():
            raise TraceError(f"{trace.source}: no request is left at --scale {self.scale:g}")
        return trace.take(keep)


def stem(path: Path) -> str:
    """The file's name without its endings .gz, .csv and so on."""
    name = path.name
    for ending in (".gz", ".csv", ".jsonl", ".json", ".parquet", ".tar", ".tgz"):
        name = name.removesuffix(ending)
    return name


def spread(
    counts: NDArray[np.int64],
    start_s: NDArray[np.float64],
    width_s: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Arrivals of bucketed counts: `counts[i]` uniform in [start_s[i], start_s[i] + width_s)."""
    begin = np.repeat(start_s, counts)
    return begin + rng.uniform(0.0, width_s, len(begin))


def numbers(values: NDArray[Any] | Labels) -> NDArray[np.float64]:
    """A column that was read as numbers."""
    assert isinstance(values, np.ndarray)
    return values


def names(values: NDArray[Any] | Labels) -> Labels:
    """A column that was read as names."""
    assert isinstance(values, Labels)
    return values


def whole(values: NDArray[Any] | Labels) -> Ints:
    """A checked column of whole numbers as such."""
    return numbers(values).astype(np.int32)
