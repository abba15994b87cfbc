"""docs/cli.md: the help of every command."""

from __future__ import annotations

from collections.abc import Iterator

import click

from modelium.cli import cli

HEAD = """\
# Command line

This page is generated from the code by `make docs`. Bad input ends in one line on stderr and exit
code 2, an interrupt in exit code 130; results are then not written at all.
"""


def page() -> str:
    """The help of every command, as a page."""
    parts = [f"\n## {path}\n\n```\n{text}\n```\n" for path, text in helps(cli, None, "modelium")]
    return HEAD + "".join(parts)


def helps(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[tuple[str, str]]:
    """Path and help of a command and of all below it."""
    context = click.Context(command, parent, name, max_content_width=100, terminal_width=96)
    context.help_option_names = ["-h", "--help"]
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            if child is not None:
                yield from helps(child, context, below)
