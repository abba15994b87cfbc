"""`modelium replay`: play a trace against a running server."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click

from modelium.cli.options import Times, as_json, client, server


@click.command()
@click.option("--trace", required=True, type=click.Path(path_type=Path), help="Trace file.")
@click.option(
    "--speed",
    default=1.0,
    type=Times(),
    show_default=True,
    help="Speed-up; 10 is ten times as fast.",
)
@click.option("--most", type=click.IntRange(1), help="Maximum number of requests.  [default: all]")
@click.option("--chat", is_flag=True, help="Send chat requests instead of completions.")
@server
@as_json
def replay(
    trace: Path, speed: float, most: int | None, chat: bool, url: str, key: str, as_json: bool
) -> None:
    """Replay a trace against a running server in real time; exit code 1 if a request failed.

    Every second request is streamed. The server's journal and report have its side of the run.
    """
    from modelium.client.replay import Play, Tally, play
    from modelium.traces import read_trace

    there = client(url, key)
    there.status()  # a wrong address is told before the trace is read
    read = read_trace(trace)
    how = Play(there.url, there.key, speed, most or len(read), chat)
    shown = sys.stderr.isatty() and not as_json

    def seen(tally: Tally) -> None:
        if shown:
            click.echo(f"\r{tally.sent:,} sent, {tally.completed:,} answered", nl=False, err=True)

    tally = asyncio.run(play(read, how, seen))
    if shown:
        click.echo(err=True)
    if as_json:
        click.echo(json.dumps(tally.as_dict(), indent=2))
    else:
        click.echo(tally.sentence())
        for error, count in sorted(tally.errors.items(), key=lambda row: -row[1])[:10]:
            click.echo(f"{count:>6,} x {error}")
    if tally.completed < tally.sent:
        raise click.exceptions.Exit(1)
