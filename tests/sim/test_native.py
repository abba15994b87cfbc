"""Compiled code is kept in a file, and taken from there only whole and for the same sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelium.sim.jit import compiler, decorators, native


def difference(a: int, b: int) -> int:
    return a - b


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(native, "folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was compiled."""
    names, assembly = list[str](), compiler.assembly

    def counted(function, options, readers):  # type: ignore[no-untyped-def]
        names.append(function.__name__)
        return assembly(function, options, readers)

    monkeypatch.setattr(compiler, "assembly", counted)
    return names


def test_it_is_compiled_once_and_is_the_same_from_its_file(compiled: list[str]) -> None:
    for _ in range(3):
        assert decorators.entry(difference)(7, -(2**40)) == 7 + 2**40
    assert compiled == ["difference"]


def test_what_is_given_first_stays_given() -> None:
    less_from, from_ten = decorators.entry(difference).at(7), decorators.entry(difference).at(10)
    assert [less_from(2), from_ten(2), less_from(9), less_from(2)] == [5, 8, -2, 5]


def test_other_sources_are_compiled_anew(
    compiled: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stamp in ("one", "one", "two", "two", "one"):
        monkeypatch.setattr(decorators, "_SOURCES", stamp)
        assert decorators.entry(difference)(3, 1) == 2
    assert len(compiled) == 3
    assert len(list(place.glob("*.o"))) == 1, "what nobody needs any more is not kept"


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "other"])
def test_a_file_that_is_not_whole_is_compiled_anew(
    compiled: list[str], place: Path, harm: str
) -> None:
    decorators.entry(difference)(3, 1)
    (file,) = place.glob("*.o")
    code = file.read_bytes()
    harmed = {
        "cut": code[:-9], "changed": code[:-9] + b"x" * 9, "empty": b"", "other": b"no\ncode"
    }  # fmt: skip
    file.write_bytes(harmed[harm])
    for _ in range(2):
        assert decorators.entry(difference)(3, 1) == 2
    assert len(compiled) == 2, "once for all"


def test_where_nothing_can_be_written_it_is_compiled_each_time(
    compiled: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").touch()
    monkeypatch.setattr(native, "folder", lambda: place / "file" / "below")
    assert decorators.entry(difference)(3, 1) == decorators.entry(difference)(2, 0) == 2
    assert len(compiled) == 2


def test_what_raises_is_told() -> None:
    def ratio(a: int, b: int) -> int:
        return a // b

    assert decorators.entry(ratio)(7, 2) == 3
    with pytest.raises(RuntimeError, match="a compiled kernel failed"):
        decorators.entry(ratio)(7, 0)


def test_an_entry_gives_integers_only() -> None:
    def half(a: int) -> float:
        return a / 2

    with pytest.raises(TypeError, match="half gives float64: an entry gives an integer"):
        decorators.entry(half)(7)


FOREIGN = ("numba", "scipy", "pandas", "pydantic", "numpy.ma")
"""They take long to import, and a simulation without a configuration file needs none of them."""
RUN = f"""
import json, sys
FOREIGN = {FOREIGN}
from modelium import cli
options = ["--policy", "lru", "--gpus", "1xh100-80g", "--no-report", "--force", "--json"]
assert not cli.invoke(["simulate", "--trace", sys.argv[1], "--out", sys.argv[2], *options])
print(json.dumps([name for name in FOREIGN if name in sys.modules]))
"""


def test_a_simulation_imports_little_once_it_is_compiled(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{k},llama-3.1-8b,100,10" for k in range(20)]
    trace.write_text("\n".join(["arrival_s,model,prompt_tokens,output_tokens", *rows]) + "\n")
    command = [sys.executable, "-c", RUN, str(trace), str(tmp_path / "out")]
    for _ in range(2):  # at first it may have to compile
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == []
