"""The site made of these pages: `make docs` builds it in docs/_build/html, without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import modelium

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ELSEWHERE = {
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
    "guides/deploy": ROOT / "deploy/README.md",
    "guides/bundled-traces": ROOT / "traces/data/README.md",
}
"""Pages whose text stands where people look for it in the repository."""

project = "Modelium"
author = copyright = "The Modelium authors"
release = modelium.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "_generate"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "Modelium"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f6fb0", "color-brand-content": "#2f6fb0"},
    "dark_css_variables": {"color-brand-primary": "#7ab3e8", "color-brand-content": "#7ab3e8"},
}


def read_from_elsewhere(app: Sphinx, page: str, source: list[str]) -> None:
    """Take the text of pages that stand elsewhere, and have links lead to pages where they can."""
    file = ELSEWHERE.get(page, DOCS / f"{page}.md")
    text = file.read_text(encoding="utf-8")
    source[0] = re.sub(
        r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)",
        lambda found: _target(file.parent / found[1], DOCS / page),
        text,
    )


def _target(file: Path, page: Path) -> str:
    """Where a link to a file of the repository leads from a page."""
    resolved = Path(os.path.normpath(file))
    for name, other in ELSEWHERE.items():
        if resolved == other:
            resolved = DOCS / f"{name}.md"
    return os.path.relpath(resolved, page.parent)


def fields_of_parameters(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """A policy's parameters, which stand in its docstring as `name: what it is`."""
    if what == "class":
        lines[:] = [re.sub(r"^([a-z]\w*): (?=\S)", r":\1: ", line) for line in lines]


def math(self: HTML5Translator, node: nodes.math) -> None:
    """Formulas as MathML, which browsers draw themselves: no script, no font to fetch."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """The same for a formula on a line of its own."""
    self.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", read_from_elsewhere)
    app.connect("autodoc-process-docstring", fields_of_parameters)
    app.add_html_math_renderer("mathml", (math, None), (math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
