"""The table that compares runs: the same cells on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of `summary.json`, and how to print it."""

    head: str
    unit: str
    read: Callable[[Summary], float | None]
    best: Callable[[Sequence[float]], float] | None = max
    """Which value deserves to stand out; None: neither end is better."""
    scale: float = 1.0
    decimals: int | None = None
    """None: two or three significant digits."""


@dataclass(frozen=True)
class Cells:
    """A column ready to print: texts of equal width, aligned at the decimal point."""

    head: str
    unit: str
    texts: tuple[str, ...]
    best: tuple[bool, ...]

    @property
    def width(self) -> int:
        """In characters, its head included."""
        return max(len(self.head), len(self.texts[0]))


FIGURES = (
    Column("SLO met", "%", lambda s: s["slo_attainment"], scale=100, decimals=1),
    Column("goodput", "1/s", lambda s: s["goodput_per_s"]),
    Column("TTFT p50", "s", lambda s: s["ttft_s"]["p50"], min),
    Column("TTFT p99", "s", lambda s: s["ttft_s"]["p99"], min),
    Column("cold starts", "%", lambda s: s["cold_starts"]["rate"], min, 100, 1),
    Column("loads", "", lambda s: s["loads"], None, decimals=0),
    Column("GPU busy", "%", lambda s: s["gpu"]["busy"], None, 100, 0),
    Column("gap to bound", "%", lambda s: gap_to_bound(s), min, 100, 1),
)


DETAILS = (
    Column("completed", "", lambda s: s["requests"]["completed"], None, decimals=0),
    Column("rejected", "", lambda s: s["requests"]["rejected"], None, decimals=0),
    Column("failed", "", lambda s: s["requests"]["failed"], None, decimals=0),
    Column("cancelled", "", lambda s: s["requests"].get("cancelled") or None, None, decimals=0),
    Column("unfinished", "", lambda s: s["requests"]["unfinished"], None, decimals=0),
    Column("TTFT limit alone met", "%", lambda s: (s["slo_alone"] or {}).get("ttft"), max, 100, 1),
    Column("TPOT limit alone met", "%", lambda s: (s["slo_alone"] or {}).get("tpot"), max, 100, 1),
    Column("TTFT mean", "s", lambda s: s["ttft_s"]["mean"], min),
    Column("TPOT p50", "ms", lambda s: s["tpot_s"]["p50"], min, 1000),
    Column("TPOT p99", "ms", lambda s: s["tpot_s"]["p99"], min, 1000),
    Column("E2E p50", "s", lambda s: s["e2e_s"]["p50"], min),
    Column("E2E p99", "s", lambda s: s["e2e_s"]["p99"], min),
    Column("cold starts from disk", "", lambda s: _from(s, "disk"), None, decimals=0),
    Column("cold starts from RAM", "", lambda s: _from(s, "host"), None, decimals=0),
    Column(
        "cold starts from sleep", "", lambda s: _from(s, "sleep-1", "sleep-2"), None, decimals=0
    ),
    Column("triggers", "", lambda s: s["cold_starts"]["triggers"], None, decimals=0),
    Column("unloads", "", lambda s: s["unloads"], None, decimals=0),
    Column("sleeps", "", lambda s: s["sleeps"], None, decimals=0),
    Column("wakes", "", lambda s: s["wakes"], None, decimals=0),
    Column("memory: weights", "%", lambda s: s["gpu"]["memory_weights"], None, 100, 1),
    Column("memory: KV reserved", "%", lambda s: s["gpu"]["memory_kv"], None, 100, 1),
    Column("memory: KV used", "%", lambda s: s["gpu"]["memory_kv_used"], None, 100, 1),
    Column("memory: free", "%", lambda s: s["gpu"]["memory_free"], None, 100, 1),
    Column("useful", "%", lambda s: s["gpu"]["useful"], max, 100, 1),
    Column("GPU-hours", "", lambda s: s["gpu_seconds"] / 3600, None),
    Column("fairness (Jain)", "", lambda s: s["fairness"]["jain"]),
    Column("worst model's SLO met", "%", lambda s: _worst(s), max, 100, 1),
)
"""The rest, for the report."""


def gap_to_bound(summary: Summary) -> float | None:
    """How far SLO attainment stays below its upper bound, as a share of that; None without one."""
    bound = summary.get("bounds", {}).get("slo_attainment")
    return 1.0 - summary["slo_attainment"] / bound if bound else None


def cells(summaries: Sequence[Summary], columns: Sequence[Column] = FIGURES) -> list[Cells]:
    """Return those of `columns` for which any run has a figure."""
    table = []
    for column in columns:
        raw = [column.read(summary) for summary in summaries]
        if any(value is not None for value in raw):
            table.append(_cells(column, raw))
    return table


def names(summaries: Sequence[Summary]) -> list[str]:
    """Name each run by its policy, and by what else it takes to tell it from its namesakes."""
    return [_name(s, [t for t in summaries if t["policy"] == s["policy"]]) for s in summaries]


def print_table(summaries: Sequence[Summary], console: Console, labels: Sequence[str] = ()) -> None:
    """Print one line a run, in the order given; the best value of each column is bold.

    What does not fit beside each other follows below.
    """
    rows = labels or names(summaries)
    name_width = min(max(6, *map(len, rows)), 16)  # a longer one is folded, if it must
    room, part = 0, list[Cells]()
    parts = [part]
    for column in cells(summaries):
        room += column.width + 2
        if part and name_width + room > console.width:
            room, part = column.width + 2, []
            parts.append(part)
        part.append(column)
    for i, part in enumerate(parts):
        if i:
            console.print()
        _print_part(part, rows, name_width, console)


def _print_part(
    columns: Sequence[Cells], rows: Sequence[str], name_width: int, console: Console
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("policy\n", overflow="fold", min_width=name_width)
    for c in columns:
        table.add_column(f"{c.head:>{c.width}}\n[dim]{c.unit:>{c.width}}[/dim]", no_wrap=True)
    for row, name in enumerate(rows):
        texts = (f"{c.texts[row]:>{c.width}}" for c in columns)
        marked = (
            f"[bold]{text}[/bold]" if c.best[row] else text
            for c, text in zip(columns, texts, strict=True)
        )
        table.add_row(escape(name), *marked)
    console.print(table)


def _cells(column: Column, raw: Sequence[float | None]) -> Cells:
    values = [None if value is None else value * column.scale for value in raw]
    texts = _aligned([_text(value, column.decimals) for value in values])
    known = [value for value in values if value is not None]
    best = texts[values.index(column.best(known))] if column.best and known else ""
    # What prints alike is equally good, and where all do nobody stands out.
    marks = tuple(text == best and len(set(texts)) > 1 for text in texts)
    return Cells(column.head, column.unit, tuple(texts), marks)


def _text(value: float | None, decimals: int | None) -> str:
    if value is None:
        return "-"
    if decimals is None:
        decimals = next((d for d, top in ((3, 0.1), (2, 10), (1, 100)) if abs(value) < top), 0)
    return f"{value:,.{decimals}f}"


def _aligned(texts: Sequence[str]) -> list[str]:
    """Pad to one width, with the decimal points in one column."""
    tails = [len(text.partition(".")[2]) + ("." in text) for text in texts]
    ends = [text + " " * (max(tails) - tail) for text, tail in zip(texts, tails, strict=True)]
    width = max(map(len, ends))
    return [text.rjust(width) for text in ends]


def _from(summary: Summary, *tiers: str) -> int:
    return sum(summary["cold_starts"]["by_tier"][tier] for tier in tiers)


def _worst(summary: Summary) -> float | None:
    worst = summary["fairness"]["worst_model"]
    return worst["slo_attainment"] if worst else None


def _name(summary: Summary, namesakes: Sequence[Summary]) -> str:
    words = [summary["policy"]]
    mine = summary.get("policy_parameters", {})
    others = [other.get("policy_parameters", {}) for other in namesakes]
    words += [f"{k}={v}" for k, v in mine.items() if any(other.get(k) != v for other in others)]
    for key in ("trace", "seed"):
        if any(other.get(key) != summary.get(key) for other in namesakes):
            words.append(f"{key} {summary.get(key)}")
    return " ".join(words)
