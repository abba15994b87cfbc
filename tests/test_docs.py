"""Generated pages are as the code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
CODE = """
import json, sys
sys.path.insert(0, "")  # also where Python is told not to
import generate
print(json.dumps({str(path): text for path, text in generate.pages().items()}))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What docs/generate.py writes; in a process of its own, as commands remember how they ran."""
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=DOCS, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def test_generated_pages_are_up_to_date(pages: dict[str, str]) -> None:
    assert {Path(page).name for page in pages} > {"cli.md", "modelium.schema.json"}
    stale = [page for page, text in pages.items() if Path(page).read_text("utf-8") != text]
    assert stale == [], "make docs"
