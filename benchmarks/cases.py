"""Other people's simulators and real servers on known input, and ours on the same.

    python benchmarks/cases.py alpaserve|vidur|vllm FOLDER [--json]

Each kind is one module, `case_KIND.py`, that says what its folders hold.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import click
from comparison import Comparison
from rich.console import Console
from rich.table import Table

from modelium.errors import ModeliumError

KINDS = ("alpaserve", "vidur", "vllm")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(kind: str, folder: Path, as_json: bool) -> None:
    """Compare our simulation with the results in FOLDER, a case of that KIND."""
    try:
        comparison: Comparison = import_module(f"case_{kind}").run(folder)
    except (ModeliumError, OSError, ValueError) as error:
        _fail(str(error))
    except KeyError as error:
        _fail(f"{folder} is not a case of kind {kind}: {error} is missing")
    except (IndexError, TypeError, AttributeError) as error:
        _fail(f"{folder} is not a case of kind {kind}: {type(error).__name__} {error}")
    if as_json:
        rows = [row.plain() for row in comparison.rows]
        click.echo(
            json.dumps({"case": folder.resolve().name, "kind": kind, "rows": rows}, indent=1)
        )
        return
    Console().print(_table(folder.resolve().name, comparison))


def _fail(message: str) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _table(case: str, comparison: Comparison) -> Table:
    table = Table(title=case, caption=comparison.basis)
    with_policy = any(row.policy for row in comparison.rows)
    if with_policy:
        table.add_column("policy")
    table.add_column("metric")
    for name in ("ours", "theirs", "difference", "relative"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        relative = "" if row.relative is None else f"{row.relative:+.2%}"
        figures = [f"{x:,.6g}" for x in (row.ours, row.theirs, row.difference)]
        table.add_row(*([row.policy or ""] if with_policy else []), row.metric, *figures, relative)
    return table


if __name__ == "__main__":
    main()
