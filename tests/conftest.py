"""What tests of all areas share: fixed random examples, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
