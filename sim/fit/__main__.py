"""The command `python -m modelium.sim.fit`: fit step times, print the errors, write the JSON."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import click
from rich.box import SIMPLE
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
        click.echo(f"modelium: {error}", err=True)
        sys.exit(2)
    Console().print(_table(results))


def _table(results: list[Result]) -> Table:
    table = Table(
        title="Fits of step time: R², mean and 95th percentile of relative error", box=SIMPLE
    )
    table.add_column("deployment", no_wrap=True)
    table.add_column("decode only", justify="right", no_wrap=True)
    table.add_column("mixed", justify="right", no_wrap=True)
    for r in results:
        shared = f"{r.replicas} x " if r.replicas > 1 else ""
        name = f"{shared}{r.model} {r.tp}x{r.gpu}"
        table.add_row(name, _figures(r.fitted.decode), _figures(r.fitted.mixed))
    return table


def _figures(error: FitError) -> str:
    return f"{error.r2:.3f} {error.mape:.1%} {error.p95:5.1%}"


if __name__ == "__main__":
    main()
