"""`modelium trace info`: what is in a trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from modelium.cli.trace.options import reading, tell
from modelium.units import format_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from modelium.traces.info import Info


@click.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--picture", metavar="FILE", help="Plot load, popularity, activity and lengths.")
@reading
def info(
    file: str, as_json: bool, picture: str | None, seed: int, model: str | None, scale: float
) -> None:
    """Describe FILE: load, burstiness, popularity, idleness and lengths."""
    from modelium.traces import describe, draw_trace, read_trace

    trace = read_trace(file, seed=seed, model=model, scale=scale)
    known = describe(trace)
    if picture is not None:
        draw_trace(trace, picture)
    if as_json:
        click.echo(json.dumps(known.as_json(), indent=2))
        return
    tell(trace)
    from rich.console import Console

    Console().print(_table(known))


def _table(known: Info) -> Table:
    from rich.table import Table

    table = Table(title=known.source, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(known):
        table.add_row(name, value)
    return table


def _lines(known: Info) -> list[tuple[str, str]]:
    skew, idle = known.skew, known.idle
    rate = "-" if known.rate_per_s is None else f"{known.rate_per_s:.3g}/s"
    return [
        ("requests", f"{known.requests:,}"),
        ("models", f"{known.models:,}"),
        ("span", format_seconds(known.span_s)),
        ("rate", f"{rate} mean, {known.peak_per_minute:,} in the fullest minute"),
        ("CV of gaps", f"{_or_none(known.cv)} overall, {_or_none(known.model_cv)} median model"),
        (
            "popularity",
            f"top model {skew.top1:.1%}, top 10 % of models {skew.top10_percent:.1%}, "
            f"top 20 % {skew.top20_percent:.1%}, bottom 50 % {skew.bottom50_percent:.1%}, "
            f"Zipf {_or_none(skew.zipf)}",
        ),
        (
            "time of a model",
            "in gaps " + ", ".join(f"> {t:,} s: {share:.1%}" for t, share in idle.items()),
        ),
        *(
            (
                name,
                f"mean {t.mean:,.0f}, p50 {t.p50:,.0f}, p90 {t.p90:,.0f}, p99 {t.p99:,.0f}, "
                f"max {t.max:,}",
            )
            for name, t in (
                ("prompt tokens", known.prompt_tokens),
                ("output tokens", known.output_tokens),
            )
        ),
    ]


def _or_none(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
