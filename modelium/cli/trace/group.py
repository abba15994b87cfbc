"""`modelium trace`: look at request traces, make them, convert and reshape them."""

from __future__ import annotations

import click

from modelium.cli.trace.convert import convert
from modelium.cli.trace.generate import generate
from modelium.cli.trace.info import info
from modelium.cli.trace.transform import transform


@click.group()
def trace() -> None:
    """Inspect, generate, convert and transform request traces.

    Formats are recognised by content; docs/traces.md lists them.
    """


for command in (info, generate, convert, transform):
    trace.add_command(command)
