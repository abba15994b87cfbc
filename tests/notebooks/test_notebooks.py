"""Every notebook runs from top to bottom, and what is kept in it is what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install -e '.[dev]'")
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PLAY = """
import nbformat, sys
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def results(notebook: Any) -> list[tuple[str, str]]:
    """Kind and text of every output; a picture's bytes depend on the machine's fonts."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return [(one.output_type, one.get("data", {}).get("text/plain", "")) for one in outputs]


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_it_runs_and_its_outputs_are_kept(file: Path, tmp_path: Path) -> None:
    played = tmp_path / "played.ipynb"
    # In a process of its own: a kernel's sockets would warn in this one. From the notebook's
    # folder, as a person would.
    ended = subprocess.run(
        [sys.executable, "-c", PLAY, file, played],
        cwd=NOTEBOOKS,
        capture_output=True,
        text=True,
        timeout=2000,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    kept = nbformat.read(file, 4)
    assert results(nbformat.read(played, 4)) == results(kept)
    pictures = [
        one
        for cell in kept.cells
        for one in cell.get("outputs", ())
        if "image/png" in one.get("data", {})
    ]
    assert len(pictures) == 3
    assert file.stat().st_size < 200_000
