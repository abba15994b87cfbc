"""`modelium reload`: a running server reads its configuration again."""

from __future__ import annotations

import json

import click

from modelium.cli.options import as_json, client, server


@click.command()
@server
@as_json
def reload(url: str, key: str, as_json: bool) -> None:
    """Have a running server take up what has changed in its configuration file.

    The file is checked first, and taken up as a whole or not at all; what only a restart can change
    is named. Models whose settings changed are replaced in order, while they are served.
    """
    told = client(url, key).reload()
    click.echo(json.dumps(told, indent=2) if as_json else told["why"])
