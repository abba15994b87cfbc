"""Writes the parts of docs/ that follow from the code: `make docs`. A test fails when stale."""

from __future__ import annotations

from pathlib import Path

from _generate import architecture, cli, configuration, tables

from modelium.config.template import json_schema

HERE = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    return {
        HERE / "cli.md": cli.page(),
        HERE / "modelium.schema.json": json_schema(),
        HERE / "architecture.svg": architecture.picture(),
        HERE / "reference/configuration.md": configuration.page(),
        HERE / "reference/tables.md": tables.page(),
    }


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(HERE.parent))
