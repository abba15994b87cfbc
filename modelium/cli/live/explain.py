"""`modelium explain [MODEL]`: why is it where it is?"""

from __future__ import annotations

import json
from typing import Any

import click

from modelium.cli.options import as_json, client, server

LOG_LINES = 10
"""Of what an engine wrote before its load failed; `modelium logs` has more."""


@click.command()
@click.argument("model", default="")
@click.option("--limit", default=20, show_default=True, help="Number of decisions, newest first.")
@server
@as_json
def explain(model: str, limit: int, url: str, key: str, as_json: bool) -> None:
    """Show the latest decisions about MODEL, or all, with reasons and outcomes."""
    there = client(url, key)
    lines = there.decisions(model, limit)
    models = there.models()
    now = [one for one in models if one["name"] == model]
    if model and not now and not lines:
        from modelium.errors import ConfigError, did_you_mean

        hint = did_you_mean(model, [one["name"] for one in models])
        raise ConfigError(f"no model called {model!r}.{hint}")
    if as_json:
        click.echo(json.dumps({"model": now[0] if now else None, "decisions": lines}, indent=2))
        return
    for one in now if model else models:
        where = f" on {' '.join(one['gpus'])}" if one["gpus"] else ""
        if model:
            click.echo(f"{one['name']} is {one['status']}{where}; {one['waiting']} wait for it")
        if waits := _waits(one):
            click.echo(waits)
    for one in now:
        if one["error"]:
            click.echo(f"its last load failed: {one['error']}")
            for line in one["log"].strip().splitlines()[-LOG_LINES:]:
                click.echo(f"  | {line}")
        if one["files_changed"]:
            click.echo(f"its files changed since it was loaded: {one['files_changed']}")
        if one["files_error"]:
            click.echo(f"its files cannot be served: {one['files_error']}")
    for line in lines:
        click.echo(_sentence(line))
    if not lines:
        click.echo("nothing was decided yet")


def _waits(one: dict[str, Any]) -> str:
    """Whom the requests for a model wait for, if they do, and how long still."""
    from modelium.units import format_seconds

    if one["left_s"] is None and not one["waits_for"]:
        return ""
    soon = "" if one["left_s"] is None else f"ready in about {format_seconds(one['left_s'])}"
    told = "; ".join(filter(None, (one["waits_for"], soon)))
    return f"{one['name']} {told}" if one["waits_for"] else f"{one['name']} should be {told}"


def _sentence(line: dict[str, Any]) -> str:
    from modelium.core import was_cancelled
    from modelium.units import format_seconds

    what = f"{format_seconds(line['at_s']):>9}  {line['kind']:<6} {line['model']}"
    where = f" on {' '.join(line['gpus'])}" if line["gpus"] else ""
    if was_cancelled(line["error"]):
        end = f"; {line['error']}"
    elif line["error"]:
        end = f"; failed: {line['error']}"
    elif line["end_s"] is None:
        end = "; under way"
    else:
        end = f"; took {format_seconds(line['end_s'] - line['at_s'])}"
    return f"{what}{where}: {line['reason']}{end}"
