"""What `modelium init` writes, and the JSON schema of what may stand there."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from modelium.config.schema import Config
from modelium.config.values import Section, adapter, keys

TEMPLATE = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")


def json_schema() -> str:
    """The schema of a configuration file, for editors that complete and check."""
    schema = adapter(Config).json_schema()
    parts = {**schema["$defs"], Config.__name__: schema}
    for section in _below(Section):
        if section.__name__ in parts:
            _describe(section, parts[section.__name__]["properties"])
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "modelium.yaml",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _below(section: type[Section]) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from _below(below)


def _describe(section: type[Section], properties: dict[str, Any]) -> None:
    """Put the texts below a section's fields into its schema, and what an empty one holds.

    Pydantic could read the texts, but would do it for each file that it checks.
    """
    texts: dict[str, str] = {}
    for part in reversed(section.__mro__):
        if issubclass(part, Section) and part is not Section:
            texts |= _texts(part)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key, name in keys(section).items():
        if name in texts:
            properties[key]["description"] = texts[name]
        if callable(make := fields[name].default_factory):
            properties[key]["default"] = make()


def _texts(section: type[Section]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }  # fmt: skip
