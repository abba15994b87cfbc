"""The report's page: words and the table by Jinja2, pictures by the scripts beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from modelium.results.record import Run
from modelium.results.report import bins, words
from modelium.results.summary import DEFINITIONS
from modelium.results.table import DETAILS, cells

_SCRIPTS = ("axes.js", "memory.js", "latency.js", "residency.js", "tables.js", "report.js")
_COLUMNS, _LOG_ROWS, _GANTT_ROWS = 3000, 8000, 120
"""What all runs of a report share: steps of GPU panels, rows of logs and of Gantt charts."""


def build(runs: Sequence[tuple[str, Run]]) -> str:
    """Return the page for `runs`, each with the name under which it appears."""
    names, summaries = [name for name, _ in runs], [run.summary for _, run in runs]
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return page.from_string(_text("report.html")).render(
        names=names,
        summaries=summaries,
        cells=cells(summaries),
        details=cells(summaries, DETAILS),
        padded=_padded,
        facts=[words.facts(summary) for summary in summaries],
        assumptions=words.said(summaries, "assumptions"),
        calibration=words.said(summaries, "calibration"),
        answer=words.answer(names, summaries),
        definitions=DEFINITIONS,
        trust=words.trust(summaries),
        style=Markup(_text("report.css")),
        scripts=Markup("\n".join(_text(name) for name in _SCRIPTS)),
        data=Markup(_embed(_data(runs))),
    )  # fmt: skip


def _data(runs: Sequence[tuple[str, Run]]) -> dict[str, Any]:
    named = bins.largest_models([run for _, run in runs])
    panels = sum(len(run.summary["gpus"]) for _, run in runs)
    columns = min(400, max(60, _COLUMNS // max(1, panels)))
    rows = max(12, min(60, _GANTT_ROWS // len(runs)))
    log_rows = max(500, min(5000, _LOG_ROWS // len(runs)))
    return {
        "named": named,
        "runs": [
            {
                "name": name,
                "end": bins.end_s(run),
                "gpus": bins.gpus(run, named, columns),
                "felt": bins.felt(run),
                "residency": bins.residency(run, named, rows),
                "models": run.summary["per_model"],
                "log": bins.log(run, log_rows),
            }
            for name, run in runs
        ],
    }


def _embed(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _text(name: str) -> str:
    return resources.files("modelium.results.report").joinpath(name).read_text(encoding="utf-8")


def _padded(text: str) -> str:
    """Trailing blanks as wide as a digit or a point, so that right-aligned points stand in line."""
    bare = text.strip()
    blanks = len(text) - len(text.rstrip())
    point = "\u2008" if blanks and "." not in bare else ""
    return bare + point + "\u2007" * (blanks - len(point))
