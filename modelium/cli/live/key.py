"""`modelium key make|list|revoke`: API keys of the gateway."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelium.cli.options import as_json
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.gateway.access.keys import Keys


@click.group()
def key() -> None:
    """Create, list and revoke API keys; a running server notices at the next request."""


def _keys(file: Path | None) -> Keys:
    """The file that is named, or the configuration's."""
    from modelium.config import find, read
    from modelium.gateway.access.keys import Keys

    if file is None:
        path = find()
        named = read(path).gateway.keys if path else None
        if named is None:
            raise ConfigError("no file of keys: set gateway.keys in the configuration, or --file")
        file = Path(named)
    return Keys(file)


in_file = click.option("--file", type=click.Path(path_type=Path), help="[default: gateway.keys]")


@key.command()
@click.argument("name")
@click.option("--organization", default="", help="Organization it belongs to.  [default: NAME]")
@click.option("--admin", is_flag=True, help="Also allow operators' commands.")
@in_file
@as_json
def make(name: str, organization: str, admin: bool, file: Path | None, as_json: bool) -> None:
    """Create a key called NAME and print it, once; only its hash is stored."""
    scopes = ("user", "admin") if admin else ("user",)
    secret = _keys(file).make(name, organization or name, scopes)
    click.echo(json.dumps({"name": name, "key": secret}) if as_json else secret)


@key.command("list")
@in_file
@as_json
def list_(file: Path | None, as_json: bool) -> None:
    """List the keys, without secrets."""
    rows = [
        {
            "name": one.name,
            "organization": one.organization,
            "scopes": list(one.scopes),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.created)),
        }
        for one in _keys(file).all()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        scopes = ", ".join(row["scopes"])
        click.echo(f"{row['name']:<20} {row['organization']:<20} {scopes:<12} {row['created']}")
    if not rows:
        click.echo("no keys yet: modelium key make NAME")


@key.command()
@click.argument("name")
@in_file
@as_json
def revoke(name: str, file: Path | None, as_json: bool) -> None:
    """Revoke the key called NAME."""
    _keys(file).revoke(name)
    click.echo(json.dumps({"revoked": name}) if as_json else f"{name} is revoked")
