"""`modelium reload`: a running server reads its configuration again."""

from __future__ import annotations

import json

import click

from modelium.cli.options import as_json, client, server


@click.command()
@server
@as_json
def reload(url: str, key: str, as_json: bool) -> None:
    """Apply changes in the configuration file to a running server.

    The file is validated first and applied as a whole or not at all. Keys that need a restart are
    listed. Models whose settings changed are replaced one by one while they keep serving.
    """
    told = client(url, key).reload()
    click.echo(json.dumps(told, indent=2) if as_json else told["why"])
