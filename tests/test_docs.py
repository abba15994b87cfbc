"""Generated pages are as the code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
CODE = """
import json, generate
print(json.dumps({path.name: text for path, text in generate.pages().items()}))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What docs/generate.py writes; in a process of its own, as commands remember how they ran."""
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=DOCS, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("name", ["cli.md", "modelium.schema.json"])
def test_generated_pages_are_up_to_date(pages: dict[str, str], name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == pages[name], f"docs/{name} is stale: make docs"
