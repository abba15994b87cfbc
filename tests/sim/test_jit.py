"""A compiled kernel is kept for the sources that it was compiled from, and for no others."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from modelium.sim.jit import decorators

JIT = Path(decorators.__file__).parent
FOLDERS = (JIT, JIT.with_name("kernel"))


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
        "from modelium.sim.jit.decorators import kernel\n\n\n"
        "@kernel\ndef add(a, b):\n    return a + b\n"
    )
    hits = []
    for stamp in ("one", "one", "two", "two"):
        monkeypatch.setattr(decorators, "_SOURCES", stamp)
        add = loaded(path).add
        assert add(1, 2) == 3
        hits.append(sum(add.dispatcher.stats.cache_hits.values()))
    assert hits == [0, 1, 0, 1]


def test_the_stamp_covers_what_kernels_are_made_of(tmp_path: Path) -> None:
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in FOLDERS]
    before = decorators.sources(*copies)
    assert before == decorators.sources(*FOLDERS)
    changed = set()
    for path in tmp_path.rglob("*.py"):
        text = path.read_text()
        path.write_text(text + "# other\n")
        if decorators.sources(*copies) != before:
            changed.add(path.stem)
        path.write_text(text)
    assert changed >= {"arrays", "build", "compiler", "generate", "generate_blocks",
                       "generate_schedule", "generate_state", "world_pointer", "heap", "infer",
                       "decorators", "native", "routing", "event_loop"}  # fmt: skip
    assert not changed & {"cluster", "transitions", "faults", "results"}
