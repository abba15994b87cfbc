"""A compiled kernel is kept for the sources that it was compiled from, and for no others."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from modelium.sim import jit

SIM = Path(jit.__file__).parent


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_other_sources_are_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper of another file has changed, the kernel's file has not."""
    path = tmp_path / "adder.py"
    path.write_text(
        "from modelium.sim.jit import kernel\n\n\n@kernel\ndef add(a, b):\n    return a + b\n"
    )
    hits = []
    for stamp in ("one", "one", "two", "two"):
        monkeypatch.setattr(jit, "_SOURCES", stamp)
        add = loaded(path).add
        assert add(1, 2) == 3
        hits.append(sum(add.dispatcher.stats.cache_hits.values()))
    assert hits == [0, 1, 0, 1]


def test_the_stamp_covers_what_kernels_are_made_of(tmp_path: Path) -> None:
    for path in SIM.glob("*.py"):
        shutil.copy(path, tmp_path)
    before = jit.sources(tmp_path)
    assert before == jit.sources(SIM)
    changed = set()
    for path in tmp_path.glob("*.py"):
        text = path.read_text()
        path.write_text(text + "# other\n")
        if jit.sources(tmp_path) != before:
            changed.add(path.stem)
        path.write_text(text)
    assert changed >= {"books", "build", "compiler", "generate", "generate_blocks", "generate_plan",
                       "generate_state", "handle", "heap", "infer", "jit", "native", "routing",
                       "world"}  # fmt: skip
    assert not changed & {"cluster", "transitions", "faults", "results"}
