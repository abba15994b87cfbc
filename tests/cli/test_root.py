"""The command line as a whole: help, wrong words, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from modelium import __version__, cli
from modelium.errors import TraceError

Run = Callable[..., Any]


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(modelium: Run, args: list[str]) -> None:
    said = modelium(*args)
    assert (said.code, said.err) == (0, "")
    for name, words in cli.COMMANDS.items():
        assert f"  {name}" in said.out
        assert words in said.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_exists_and_says_the_same_of_itself(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert isinstance(command, click.Command)
    assert command.name == name


def test_version(modelium: Run) -> None:
    assert modelium("--version") == (0, f"modelium {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["simulat"], "no command called 'simulat'. Did you mean 'simulate'?"),
        (["xyz"], "no command called 'xyz'. There are simulate, compare, trace, policies,"),
        (["--polcy"], "No such option '--polcy'"),
        (["simulate"], "Missing option '--trace'"),
        (["simulate", "--trace", "x.csv", "--sed", "1"], "No such option '--sed'"),
        (["simulate", "--trace", "x.csv", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_wrong_words_are_one_line_and_code_2(modelium: Run, args: list[str], said: str) -> None:
    ended = modelium(*args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"modelium: {said}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TraceError("t.csv, row 3: no"), 2, "modelium: t.csv, row 3: no\n"),
        (TraceError("a\nb\x1b[1m"), 2, "modelium: a\\nb\\x1b[1m\n"),
        (KeyboardInterrupt(), 130, "modelium: interrupted\n"),
    ],
)
def test_errors_end_in_a_line_and_a_code(
    modelium: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: fails)
    ended = modelium("check")
    assert (ended.code, ended.out, ended.err.lstrip("\n")) == (code, "", said)


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)  # gone before the first word
    code = "import sys; from modelium.cli import main; sys.argv[1:] = ['--help']; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
