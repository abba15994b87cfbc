"""docs/reference/tables.md: the columns of a run's tables and the keys of its summary."""

from __future__ import annotations

from collections.abc import Mapping

from modelium.results.record import COLD, OUTCOMES, SUMMARY_KEYS, TABLES

HEAD = """\
# Results: tables and their columns

A run leaves one folder, whether it was simulated or served (`--out`): `requests.parquet`,
`decisions.parquet`, `timeline.parquet`, `summary.json` and `report.html`. Times ending in `_s` are
seconds since the run began. *Dictionary* columns hold names; pandas reads them as categories.

```python
import pandas as pd

requests = pd.read_parquet("runs/day24-ilp/requests.parquet")
requests.groupby("model", observed=True)["slo_met"].mean()
```

This page is generated from the code that writes the tables.
"""
SAYS = {
    "requests": "One row per request, in order of arrival.",
    "decisions": "One row per action of the policy or of an operator, in order of time.",
    "timeline": "One row per GPU, instance and kind of memory, from when until when it was held.",
}


def page() -> str:
    """Every table with its columns, then the summary."""
    parts = [HEAD]
    for name, columns in TABLES.items():
        parts.append(f"\n## {name}.parquet\n\n{SAYS[name]}\n\n{_columns(columns)}")
    parts.append(f"\n`OUTCOMES`: {_names(OUTCOMES)}.\n\n`COLD`: {_names(COLD)}; empty if the ")
    parts.append("request found a ready instance.\n\n## summary.json\n\n")
    parts.append(f"Keys: {_names(SUMMARY_KEYS)}; also `bounds` with `--bounds`.\n")
    parts.append("\nThe report defines each metric.\n")
    return "".join(parts)


def _columns(columns: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | {words} |\n" for name, words in columns.items()]
    return "".join(["| column | type and meaning |\n|---|---|\n", *rows])


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names if name)
