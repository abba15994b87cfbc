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
    """Build the report of the runs in FOLDERS, side by side if there are several.

    A folder of compared runs stands for all of them.
    """
    from modelium.cli.outcome import write_report

    runs = [run for folder in folders for run in _runs(folder)]
    file = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(runs, file)
    click.echo(file)


def _runs(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it if it is a comparison, in the order of its table."""
    import json

    from modelium.errors import RecordError

    comparison = folder / "comparison.json"
    if not comparison.is_file():
        return [folder]
    try:
        told = json.loads(comparison.read_text(encoding="utf-8"))["runs"]
        return [folder / Path(run["folder"]).name for run in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{comparison}: cannot be read: {error}") from None
