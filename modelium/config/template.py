"""What `modelium init` writes, and the JSON schema of what may stand there."""

from __future__ import annotations

import json
from pathlib import Path

from modelium.config.schema import Config

TEMPLATE = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")


def json_schema() -> str:
    """The schema of a configuration file, for editors that complete and check."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "modelium.yaml",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
