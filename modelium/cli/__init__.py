"""The command line. One short file a command, imported when that command is asked for."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Any

import click

from modelium import __version__
from modelium.errors import ModeliumError, did_you_mean, one_line

COMMANDS = {
    "simulate": "Simulate a request trace under one or more policies.",
    "compare": "Compare policies on a trace, or finished runs side by side.",
    "trace": "Inspect, generate, convert and transform traces.",
    "policies": "List the policies, or describe one.",
    "analyze": "Report what the model in a folder needs.",
    "report": "Rebuild a report, or build one that compares runs.",
    "check": "Validate the configuration and this machine.",
    "init": "Write a commented configuration file.",
    "run": "Serve models, with a policy in charge.",
    "replay": "Replay a trace against a running server.",
    "watch": "Watch a running server in the terminal.",
    "status": "Show GPUs, the models on them, and totals.",
    "list": "List the models of a running server.",
    "explain": "Explain recent decisions about a model.",
    "load": "Load a model.",
    "unload": "Unload a model.",
    "sleep": "Put a model to sleep (weights stay in host RAM).",
    "wake": "Wake a sleeping model.",
    "update": "Switch a model to its changed files, without downtime.",
    "pin": "Keep a model loaded regardless of the policy.",
    "unpin": "Let the policy decide about a model again.",
    "add": "Add a folder of model files to the repository.",
    "delete": "Remove a model.",
    "reload": "Apply configuration changes to a running server.",
    "logs": "Show the log of a model's engine.",
    "usage": "Show usage by organization.",
    "key": "Create, list and revoke API keys.",
}
"""Name and one-line help; the command itself is `modelium.cli.<name>.<name>`, but for these:"""
ELSEWHERE = {
    "trace": "trace.group",
    **{
        name: f"live.{name}"
        for name in ("run", "replay", "watch", "status", "explain", "reload", "logs", "key")
    },
    **dict.fromkeys(
        ("load", "unload", "sleep", "wake", "update", "pin", "unpin", "delete"), "live.operate"
    ),
    **dict.fromkeys(("list", "usage"), "live.status"),
}
ALIASES = {"serve": "run"}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"modelium.cli.{ELSEWHERE.get(name, name)}")
        command: click.Command = getattr(module, f"{name}_" if name == "list" else name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with, or say which one may be meant."""
        if args and args[0] not in {**COMMANDS, **ALIASES} and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS) or f" There are {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command called {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="modelium", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Decide which model runs on which GPU: simulate policies on a trace, compare, then serve."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line and exit: 0 well, 1 reader gone, 2 bad input, 130 interrupted."""
    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left (`| head`); Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    gc.freeze()  # at exit, looking for garbage in all that was imported costs 0.2 s
    sys.exit(code)


def invoke(args: list[str]) -> int:
    """Run the command line and return its exit code; bad input is one line on stderr."""
    try:
        code: Any = cli.main(args, prog_name="modelium", standalone_mode=False)
    except ModeliumError as error:
        return _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except click.Abort:
        return _fail("interrupted", 130)
    finally:
        gc.enable()  # where a command went without
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 2) -> int:
    click.echo(f"modelium: {one_line(message)}", err=True)
    return code
