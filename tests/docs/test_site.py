"""The site builds without a warning and needs no network to be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does but elsewhere."""
    out = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
         "-d", str(out / "doctrees"), str(DOCS), str(out / "html")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return out / "html"


def test_every_page_is_there(site: Path) -> None:
    pages = {p.relative_to(DOCS).with_suffix("") for p in DOCS.rglob("*.md")}
    pages = {page for page in pages if page.parts[0] != "_build"}
    assert [str(page) for page in pages if not (site / page).with_suffix(".html").exists()] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Links lead out of the site; what a page loads by itself does not."""
    loads = r"<(?:script|img|iframe)[^>]*\ssrc=\"(?:https?:)?//|<link[^>]*\shref=\"(?:https?:)?//"
    found = {p.name for p in site.rglob("*.html") if re.search(loads, p.read_text("utf-8"))}
    assert found == set()
    styles = [p for p in site.rglob("*.css") if re.search(r"url\(\W?https?:", p.read_text("utf-8"))]
    assert styles == []


def test_public_names_and_formulas_are_on_their_pages(site: Path) -> None:
    python = (site / "reference/python.html").read_text("utf-8")
    for name in (
        "core.ClusterState", "core.Load", "policies.toolkit.adapters.OnDemand", "sim.simulate",
    ):  # fmt: skip
        assert f'id="modelium.{name}"' in python
    assert "<math" in (site / "bounds.html").read_text("utf-8")
