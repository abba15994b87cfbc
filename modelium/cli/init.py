"""`modelium init`: write a commented configuration file, or its JSON schema."""

from __future__ import annotations

from pathlib import Path

import click

from modelium.errors import ConfigError


@click.command()
@click.argument("file", default="modelium.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@click.option("--schema", is_flag=True, help="Print the JSON schema instead, for editors.")
def init(file: Path, force: bool, schema: bool) -> None:
    """Write a commented configuration to FILE (default: modelium.yaml)."""
    if schema:
        from modelium.config.template import json_schema

        click.echo(json_schema(), nl=False)
        return
    from modelium.config.template import TEMPLATE

    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(TEMPLATE)
    except FileExistsError:
        raise ConfigError(f"{file} exists already; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"{file}: written. Next: edit it, then modelium check")
