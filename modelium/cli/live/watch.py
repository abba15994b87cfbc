"""`modelium watch`: the live view of a running server."""

from __future__ import annotations

import json
import sys
import threading

import click

from modelium.cli.options import as_json, client, server
from modelium.client.client import ServerError

EVERY_S = 0.5


@click.command()
@server
@as_json
def watch(url: str, key: str, as_json: bool) -> None:
    """Watch a running server: resident models, queues and decisions. Ctrl-C ends it.

    Without a terminal, or with --json, prints events as they happen, one per line. Exits with
    code 2 when the server stops.
    """
    there = client(url, key)
    there.status()  # a wrong address is told before the screen is cleared
    if as_json or not sys.stdout.isatty():
        from modelium.cli.live.live_view import sentence

        for what, about in there.events():
            if as_json:
                click.echo(json.dumps({"event": what, **about}))
            elif (line := sentence(what, about)) is not None:
                click.echo(line.plain.strip())
        return
    from rich.console import Console
    from rich.live import Live

    from modelium.cli.live.live_view import Screen

    screen, console, over = Screen(there.url), Console(), threading.Event()
    ends: list[ServerError] = []

    def hear() -> None:
        try:
            for what, about in there.events():
                screen.hear(what, about)
        except ServerError as error:
            ends.append(error)
        finally:
            over.set()

    threading.Thread(target=hear, daemon=True).start()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while not over.wait(EVERY_S):
            live.update(screen.draw(there.status(), *console.size), refresh=True)
    for error in ends:
        raise error
