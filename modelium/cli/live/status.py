"""`modelium status|list|usage`: what a running server has, does and has done."""

from __future__ import annotations

import json
from typing import Any

import click

from modelium.cli.options import as_json, client, server

WIDTH = 140
"""Of a line where there is no terminal."""


@click.command()
@server
@as_json
def status(url: str, key: str, as_json: bool) -> None:
    """Show a running server's GPUs, the models on them, and totals."""
    told = client(url, key).status()
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    from rich.console import Console

    from modelium.cli.live.live_view import gpu_lines, head_line

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(head_line(told))
    for line in gpu_lines(told, console.width):
        console.print(line)


@click.command("list")
@server
@as_json
def list_(url: str, key: str, as_json: bool) -> None:
    """List the models of a running server."""
    models = client(url, key).models()
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    rows = [
        {
            "model": one["name"],
            "status": one["status"] + (" (pinned)" if one["pinned"] else ""),
            "runtime": one["runtime"],
            "GPUs": " ".join(one["gpus"]),
            "requests/s": f"{one['qps']:.2f}",
            "idle": _seconds(one["idle_s"]),
            "waiting": one["waiting"],
            "bytes a GPU": _bytes(one["bytes_per_gpu"]),
            "": one["error"] or _files(one),
        }
        for one in models
    ]
    _table(rows, right=("requests/s", "idle", "waiting", "bytes a GPU"))


@click.command()
@server
@as_json
def usage(url: str, key: str, as_json: bool) -> None:
    """Show requests, tokens and GPU-seconds used by each organization."""
    rows = client(url, key).usage()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [
        {
            "organization": row["organization"] or "(none)",
            "requests": f"{row['requests']:,}",
            "prompt tokens": f"{row['prompt_tokens']:,}",
            "output tokens": f"{row['output_tokens']:,}",
            "GPU-seconds": f"{row['gpu_seconds']:,.1f}",
        }
        for row in rows
    ]
    _table(table, right=("requests", "prompt tokens", "output tokens", "GPU-seconds"))


def _table(rows: list[dict[str, Any]], right: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ("nothing yet",):
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def _files(one: dict[str, Any]) -> str:
    """What is to be said of a model's files, if anything."""
    if one["files_error"]:
        return f"its files cannot be served: {one['files_error']}"
    changed = one["files_changed"]
    return f"files changed since it was loaded: {changed}" if changed else ""


def _seconds(seconds: float | None) -> str:
    from modelium.units import format_seconds

    return "never used" if seconds is None else format_seconds(seconds)


def _bytes(size: int) -> str:
    from modelium.units import format_bytes

    return format_bytes(size)
