"""docs/reference/configuration.md: every key of modelium.yaml, from its JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from modelium.config.template import TEMPLATE, json_schema
from modelium.units import format_bytes

HEAD = """\
# Configuration

`modelium init` writes a commented `modelium.yaml`; `modelium check` validates it. This page lists
every key and is generated from the schema that checks the file. Editors that understand JSON schema
can use [modelium.schema.json](../modelium.schema.json), which `modelium init --schema` also prints.

Unless `--config` names a file, these are tried in order: `$MODELIUM_CONFIG`, `./modelium.yaml`,
`~/.modelium/modelium.yaml`, `/etc/modelium/modelium.yaml`. Every key is optional. Sizes are written
`80GiB`, durations `30s` or `5min`, bandwidths `6GB/s`. A default of *none* means that the key has
no effect until it is set, or that the catalogue or the engine decides.
"""
UNITS = {"80GiB": "size", "30s": "duration", "6GB/s": "bandwidth"}
TIMES = ((86400, "d"), (3600, "h"), (60, "min"))
KINDS = {"string": "text", "integer": "whole number", "boolean": "true or false"}
Schema = dict[str, Any]


def page() -> str:
    """A section for each mapping of the file, in the schema's order, then a commented example."""
    whole = json.loads(json_schema())
    places: dict[str, str] = {}
    _place(whole, "", whole["$defs"], places)
    parts = [HEAD, *_section("Top level", whole, places, whole["$defs"])]
    for path, name in _in_order(whole, places):
        parts += _section(f"`{path}`", whole["$defs"][name], places, whole["$defs"])
    return "".join([*parts, f"\n## Example\n\n`modelium init` writes:\n\n```yaml\n{TEMPLATE}```\n"])


def _place(schema: Schema, above: str, defs: Schema, places: dict[str, str]) -> None:
    """Where each section stands first in a file, such as "models.NAME.slo"; outermost first."""
    found = {}
    for key, prop in schema["properties"].items():
        for name, many in _sections(prop):
            if name not in places and "properties" in defs[name] and name != "NamedModel":
                found[name] = places[name] = f"{above}{key}{many}"
    for name, path in found.items():
        _place(defs[name], f"{path}.", defs, places)


def _in_order(whole: Schema, places: dict[str, str]) -> list[tuple[str, str]]:
    """Paths with their sections: each key of the file with all that is below it."""
    keys = list(whole["properties"])
    return sorted(
        ((path, name) for name, path in places.items()),
        key=lambda one: (keys.index(re.split(r"[.\[]", one[0])[0]), one[0]),
    )


def _section(title: str, schema: Schema, places: dict[str, str], defs: Schema) -> Iterator[str]:
    yield f"\n## {title}\n"
    if title != "Top level" and schema.get("description"):
        yield f"\n{schema['description']}\n"
    yield "\n| key | value | default | |\n|---|---|---|---|\n"
    for name, prop in schema["properties"].items():
        text, default = _described(prop, defs)
        default = "required" if name in schema.get("required", ()) else default
        yield f"| `{name}` | {_kind(prop, places)} | {default} | {text} |\n"


def _described(prop: Schema, defs: Schema) -> tuple[str, str]:
    """Its description without the default that some name in words, and that default."""
    below = next((defs[name].get("description") for name, _ in _sections(prop)), None)
    text = " ".join((prop.get("description") or below or "").split())
    named = re.search(r"\s*\[default: (.*?)\]", text)
    if named:
        text = text.replace(named[0], "")
    default = named[1] if named else _default(prop)
    return text.replace("|", "\\|"), default


def _default(prop: Schema) -> str:
    value = prop.get("default")
    if value in ({}, []) or any(True for _ in _sections(prop)):
        return ""
    if value is None:
        return "*none*"
    unit = _unit(prop)
    if unit == "duration" and isinstance(value, float):
        size, unit = next((one for one in TIMES if value and not value % one[0]), (1, "s"))
        return f"`{value / size:g}{unit}`"
    if unit == "size" and isinstance(value, int):
        return f"`{format_bytes(value)}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _unit(prop: Schema) -> str:
    return UNITS.get((prop.get("examples") or [""])[0], "")


def _sections(prop: Schema, many: str = "") -> Iterator[tuple[str, str]]:
    """The sections that a value may be, and what stands between key and section."""
    if "$ref" in prop:
        yield prop["$ref"].rpartition("/")[2], many
    for one in prop.get("anyOf", ()):
        yield from _sections(one, many)
    if isinstance(prop.get("items"), dict):
        yield from _sections(prop["items"], f"{many}[]")
    if isinstance(prop.get("additionalProperties"), dict):
        yield from _sections(prop["additionalProperties"], f"{many}.NAME")


def _kind(prop: Schema, places: dict[str, str]) -> str:
    """What a value is, in a few words."""
    if "$ref" in prop:
        return _linked(prop["$ref"].rpartition("/")[2], places)
    if unit := _unit(prop):
        return unit
    if "anyOf" in prop:
        kinds = [_kind(one, places) for one in prop["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in prop:
        return ", ".join(f"`{value}`" for value in prop["enum"])
    if prop.get("type") == "array":
        return f"list of {_kind(prop.get('items', {}), places)}"
    if prop.get("type") == "object":
        inner = prop.get("additionalProperties")
        return (
            f"mapping from names to {_kind(inner, places)}"
            if isinstance(inner, dict)
            else "mapping"
        )
    return KINDS.get(prop.get("type", ""), prop.get("type", "any"))


def _linked(name: str, places: dict[str, str]) -> str:
    if name == "NamedModel":
        return "the same with a `name`"
    if name not in places:
        return "any value"
    slug = re.sub(r"[^a-z0-9_-]", "", places[name].lower())
    return f"[section](#{slug})"
