"""What tests of all areas share: fixed random examples, the command line as a function, and that
processes of a test that fails end with its module."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from modelium import cli

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def modelium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Run the command line in an empty folder, far from anybody's configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MODELIUM_CONFIG", raising=False)

    def call(*args: object) -> Said:
        capsys.readouterr()
        code = cli.invoke([str(arg) for arg in args])
        return Said(code, *capsys.readouterr())

    return call


# What a test that fails leaves. Fixtures end what they start; a test may be cut short before it
# ends what it has started itself. Such a process would take the machine's time from the tests after
# it, and Python would warn of it, of files and of sockets, as an error, in one that has nothing
# to do with them.

Child = subprocess.Popen[Any]
_children: weakref.WeakSet[Child] = weakref.WeakSet()
"""All processes that were started here."""
_left: list[Child] = []
"""Those of tests that failed."""
FAILED = pytest.StashKey[bool]()


def _note_children() -> None:
    begin = subprocess.Popen.__init__

    def noted(self: Child, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        _children.add(self)

    subprocess.Popen.__init__ = noted  # type: ignore[method-assign]


_note_children()


@contextlib.contextmanager
def _failing(item: pytest.Item) -> Iterator[None]:
    before = set(_children)
    try:
        yield
    except BaseException:
        item.stash[FAILED] = True
        _left.extend(child for child in _children if child not in before)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _failing(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _failing(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Others of the module may use what a failing test has started for them."""
    try:
        return (yield)
    finally:
        if item.stash.get(FAILED, False):
            _forget()
        if nextitem is None or nextitem.path != item.path:
            while _left:
                _end(_left.pop())


def _forget() -> None:
    """Let go of what the frames of a failed test still hold, without a word."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _end(child: Child) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it leads no group
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
