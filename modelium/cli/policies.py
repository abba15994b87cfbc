"""`modelium policies`: list the policies, or explain one."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click

from modelium.errors import PolicyError
from modelium.plugins.registry import describe, names


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policies(name: str | None, as_json: bool) -> None:
    """List the policies, or describe one: what it does, its parameters and its source."""
    if name is not None:
        told = describe(name)
        click.echo(json.dumps(told, indent=2) if as_json else explain(told))
        return
    listed = _listed()
    if as_json:
        click.echo(json.dumps({"policies": listed}, indent=2))
        return
    width = max(len(told["name"]) for told in listed)
    for told in listed:
        click.echo(f"{told['name']:<{width}}  {told['summary']}")
    click.echo("\nParameters: modelium policies NAME. To write one: docs/write-a-policy.md.")


def _listed() -> list[dict[str, Any]]:
    """All policies; a package that cannot be imported hides only its own, and that is said."""
    listed = []
    for name in names():
        try:
            listed.append(describe(name))
        except PolicyError as error:
            click.echo(f"modelium: {error}", err=True)
    return listed


def explain(told: dict[str, Any]) -> str:
    """Say in words what `describe` found."""
    parts = [f"{told['name']}: {told['summary']}", *told["details"]]
    if told["told_the_trace"]:
        parts.append("It knows the whole trace in advance, so it only works in simulation.")
    rows = [_parameter(row) for row in told["parameters"]]
    parts.append("\n".join(["Parameters", *rows]) if rows else "No parameters.")
    if told["source"]:
        parts.append(f"Source: {told['source']}")
    first = next((row for row in told["parameters"] if not row["required"]), None)
    if first:
        example = f"{told['name']}:{first['name']}={_shown(first['default'])}"
        parts.append(f"Use: modelium simulate --trace FILE --policy {example}")
    return "\n\n".join(_wrapped(part) for part in parts)


def _parameter(row: dict[str, Any]) -> str:
    default = "required" if row["required"] else f"default {_shown(row['default'])}"
    return f"  {row['name']} ({row['type']}, {default})\n      {row['help']}".rstrip()


def _wrapped(text: str) -> str:
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(textwrap.fill(line, 96, subsequent_indent=indent))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
