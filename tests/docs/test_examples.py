"""What pages show as a session, ```console with its output and ```python with >>>, happens so."""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of the blocks of a page that are run."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.M | re.S):
        if language == "console" or ">>> " in block:
            yield language, block


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The command lines of a session, each with the output below it."""
    for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
RUN = [page for page in PAGES if any(True for _ in blocks(page))]


def test_there_are_sessions_to_run() -> None:
    assert {"first-simulation.md", "index.md"} <= {page.name for page in RUN}


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(DOCS)))
def test_sessions_happen_as_shown(page: Path, tmp_path: Path) -> None:
    """A page's blocks are one session in one empty folder, from top to bottom."""
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        for language, block in blocks(page):
            if language == "console":
                for command, expected in commands(block):
                    shown(command, expected)
            else:
                spoken(page, block, names)


def shown(command: str, expected: str) -> None:
    """Run a command as in a terminal of 100 columns; its output has to match."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
    environment.pop("MODELIUM_CONFIG", None)
    ended = subprocess.run(
        command, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    if expected and not doctest.OutputChecker().check_output(expected, ended.stdout, FLAGS):
        raise AssertionError(f"$ {command}\nexpected:\n{expected}\ngot:\n{ended.stdout}")


def spoken(page: Path, block: str, names: dict[str, Any]) -> None:
    """Run a block of Python with its answers; names live on to the page's next block."""
    test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), 0)
    runner, said = doctest.DocTestRunner(optionflags=FLAGS), list[str]()
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize(
    ("output", "right"), [("1 2\n", True), ("1 ...\n", True), ("1 3\n", False)]
)
def test_a_wrong_output_is_seen(output: str, right: bool) -> None:
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        shown("echo 1 2", output)
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        spoken(ROOT / "README.md", f">>> print('1 2')\n{output}", {})
