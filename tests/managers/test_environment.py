"""Where a runtime is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelium.errors import ConfigError
from modelium.managers import environment


def installed(folder: Path) -> Path:
    """An environment with a program "serve" in it."""
    program = folder / "bin" / "serve"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.delenv("MODELIUM_THING_ENV", raising=False)


def test_the_first_place_that_has_it_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [installed(tmp_path / name) for name in ("path", ".engines/thing", "var", "given")]
    on_path, built, variable, given = places
    assert environment.find("thing", "serve", tmp_path / "given") == given
    assert environment.find("thing", "serve", given) == given, "the program itself will do"
    monkeypatch.setenv("MODELIUM_THING_ENV", str(tmp_path / "var"))
    assert environment.find("thing", "serve") == variable
    monkeypatch.delenv("MODELIUM_THING_ENV")
    assert environment.find("thing", "serve") == built
    built.unlink()
    assert environment.find("thing", "serve") == on_path


def test_what_is_named_and_missing_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "path")
    with pytest.raises(ConfigError, match=r"nowhere has no bin/serve"):
        environment.find("thing", "serve", Path("nowhere"))
    monkeypatch.setenv("MODELIUM_THING_ENV", "gone")
    with pytest.raises(ConfigError, match=r"\$MODELIUM_THING_ENV for thing: gone has no"):
        environment.find("thing", "serve")


def test_missing_everywhere_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"thing is not installed: .* `make engines`"):
        environment.find("thing", "serve")


def test_modeliums_own_environment_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = installed(tmp_path / "given")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    found = environment.variables(program)
    assert "PYTHONPATH" not in found
    assert found["HTTP_PROXY"] == "http://127.0.0.1:1"
    assert found["PATH"].split(os.pathsep)[0] == str(program.parent)


def test_versions_are_read_without_starting_anything(tmp_path: Path) -> None:
    program = installed(tmp_path / "given")
    assert environment.distribution(program, "some-thing") is None
    packages = tmp_path / "given" / "lib" / "python3.11" / "site-packages"
    (packages / "some_thing-1.2+cpu.dist-info").mkdir(parents=True)
    (packages / "some_thing_else-9.dist-info").mkdir(parents=True)
    assert environment.distribution(program, "some-thing") == "1.2+cpu"
