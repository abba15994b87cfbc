"""The command `python -m modelium.sim.fit`: fit step times, print the errors, write the JSON."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from modelium.errors import ModeliumError
from modelium.sim.fit.document import SOURCES, Result, document
from modelium.sim.fit.form import FitError


@click.command()
@click.argument("source", type=click.Choice(sorted(SOURCES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option(
    "--links",
    type=click.Path(path_type=Path),
    help="aiconfigurator's folder, for the links between GPUs (llmservingsim with several GPUs).",
)
@click.option("--date", "day", default=date.today().isoformat, help="Noted as the day of the fit.")
def main(source: str, folder: Path, out: Path | None, links: Path | None, day: str) -> None:
    """Fit step times to the measurements of SOURCE in FOLDER."""
    try:
        results = list(SOURCES[source].fits(folder, links))
        if out:
            partial = out.with_name(out.name + ".partial")
            partial.write_text(document(SOURCES[source], results, day), encoding="utf-8")
            partial.replace(out)
    except (ModeliumError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    Console().print(_table(results))


def _table(results: list[Result]) -> Table:
    table = Table(title="Fits of step time: R², mean and 95th percentile of relative error")
    table.add_column("deployment")
    for steps in ("decode", "mixed"):
        for name in ("R²", "mean", "p95"):
            table.add_column(f"{steps}\n{name}", justify="right")
    for r in results:
        errors = (r.fitted.decode, r.fitted.mixed)
        figures = [f(e) for e in errors for f in (_r2, _mean, _p95)]
        shared = f", {r.replicas} replicas" if r.replicas > 1 else ""
        table.add_row(f"{r.model} on {r.tp}x{r.gpu}{shared}", *figures)
    return table


def _r2(error: FitError) -> str:
    return f"{error.r2:.4f}"


def _mean(error: FitError) -> str:
    return f"{error.mape:.1%}"


def _p95(error: FitError) -> str:
    return f"{error.p95:.1%}"


if __name__ == "__main__":
    main()
