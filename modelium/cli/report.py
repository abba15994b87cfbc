"""`modelium report`: build the report of a run again, or one of several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write.  [default: report.html in DIR]"
)
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Build a report of the runs in FOLDERS, side by side if there are several.

    The folder of a comparison stands for all of its runs.
    """
    from modelium.cli.outcome import runs_in, write_report

    runs = [run for folder in folders for run in runs_in(folder)]
    file = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(runs, file)
    click.echo(file)
