"""`modelium trace`: look at request traces, make them, convert and reshape them."""

from __future__ import annotations

import click

from modelium.cli.trace_generate import generate


@click.group()
def trace() -> None:
    """Look at request traces, make them, convert and reshape them."""


trace.add_command(generate)
