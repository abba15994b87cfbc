"""`modelium logs [-f] MODEL`: what a model's engine writes."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import click

from modelium.cli.options import client, server
from modelium.errors import ConfigError, did_you_mean

LOOK_S = 0.2


@click.command()
@click.argument("model")
@click.option("-f", "--follow", is_flag=True, help="Keep printing as the log grows.")
@click.option(
    "-n", "--lines", default=50, type=click.IntRange(0), show_default=True,
    help="Number of lines from the end.",
)  # fmt: skip
@server
def logs(model: str, follow: bool, lines: int, url: str, key: str) -> None:
    """Show the log of MODEL's engine. Run it on the server's machine."""
    models = {one["name"]: one for one in client(url, key).models()}
    if model not in models:
        raise ConfigError(f"no model called {model!r}.{did_you_mean(model, models)}")
    files = [Path(one["log"]) for one in models[model]["instances"] if one["log"]]
    if not files:
        if models[model]["log"]:  # it failed; this is what it wrote last
            click.echo(models[model]["log"])
            return
        raise ConfigError(f"{model} is not loaded, so nothing writes a log (modelium load {model})")
    if not files[-1].is_file():
        raise ConfigError(f"{files[-1]}: no such file here; it is on the server's machine")
    _show(files[-1], lines, follow)


def _show(file: Path, lines: int, follow: bool) -> None:
    with file.open(encoding="utf-8", errors="replace") as log:
        click.echo("".join(deque(log, lines)), nl=False)
        while follow:
            if text := log.read():
                click.echo(text, nl=False)
            else:
                time.sleep(LOOK_S)
