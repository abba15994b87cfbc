"""`modelium load|unload|sleep|wake|update|pin|unpin MODEL`: what operators do to one model."""

from __future__ import annotations

import json

import click

from modelium.cli.options import as_json, client, server


def _verb(name: str, says: str) -> click.Command:
    @click.command(name, help=says)
    @click.argument("model")
    @server
    @as_json
    def command(model: str, url: str, key: str, as_json: bool) -> None:
        told = client(url, key).act(model, name)
        if as_json:
            click.echo(json.dumps(told, indent=2))
        else:
            where = f" on {' '.join(told['gpus'])}" if told["gpus"] else ""
            pinned = ", pinned" if told["pinned"] else ""
            for line in told.get("updated", ()):
                click.echo(line)
            click.echo(f"{told['name']} is {told['status']}{where}{pinned}")

    return command


load = _verb("load", "Load MODEL, or wake it, where the policy puts it; wait until it is ready.")
unload = _verb("unload", "Drain MODEL and free its memory; a load in progress is cancelled.")
sleep = _verb("sleep", "Drain MODEL and put it to sleep, with its weights in host RAM.")
wake = _verb("wake", "Wake MODEL's sleeping instances.")
update = _verb(
    "update",
    "Replace instances of MODEL loaded from older files; without downtime if memory allows.",
)
pin = _verb("pin", "Keep MODEL loaded regardless of the policy; survives restarts.")
unpin = _verb("unpin", "Let the policy decide about MODEL again.")


@click.command(help="Unload MODEL, stop serving it, and remove it from the model repository.")
@click.argument("model")
@server
@as_json
def delete(model: str, url: str, key: str, as_json: bool) -> None:
    """Remove a model."""
    told = client(url, key).delete(model)
    click.echo(json.dumps(told, indent=2) if as_json else f"{model} is removed")
