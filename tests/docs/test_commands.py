"""Every command line in README, CONTRIBUTING and docs/ exists, with the options shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from modelium.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]
GENERATED = "cli.md"


def shown(page: Path) -> Iterator[str]:
    """The command lines in a page's blocks and inline, continuation lines joined."""
    text = re.sub(r"\s*\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = (line.removeprefix("$ ") for line in block.splitlines())
        yield from (line for line in lines if line.startswith("modelium "))
    yield from (code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith("modelium "))


def wrong(line: str) -> str:
    """What is wrong with a command line: no such command or option; empty if nothing."""
    words = shlex.split(re.split(r"\s{3,}|\s#|[|·]", line)[0].replace("[", " ").replace("]", " "))
    command: click.Command = cli
    context = click.Context(cli)
    for word in words[1:]:
        if isinstance(command, click.Group):
            below = command.get_command(context, word) if not word.startswith("-") else command
            if below is None or (below is command and word not in options(command)):
                return f"no command {word!r}"
            command = below
        elif word.startswith("-") and word not in options(command):
            return f"no option {word!r}"
    return ""


def options(command: click.Command) -> set[str]:
    """Every way to write the options of a command."""
    return {"-h", "--help"} | {
        opt for one in command.params for opt in (*one.opts, *one.secondary_opts)
    }


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != GENERATED],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_that_are_shown_exist(page: Path) -> None:
    found = {line: wrong(line) for line in shown(page)}
    assert {line: said for line, said in found.items() if said} == {}


def test_there_are_commands_to_look_at_and_wrong_ones_are_seen() -> None:
    assert len([line for page in PAGES for line in shown(page)]) >= 15
    assert wrong("modelium simulate --trace x.csv --polcy lru") == "no option '--polcy'"
    assert wrong("modelium simulat --trace x.csv") == "no command 'simulat'"
