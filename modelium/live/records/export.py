"""A live run as the same folder of tables that a simulation leaves: one reader, one report.

The rows come from the journal, so a run that was killed can be recorded as well.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from modelium import __version__
from modelium.core import Gpu, Slo
from modelium.errors import RecordError
from modelium.live.records.journal import DECISION_COLUMNS, decision_of
from modelium.results.record import (
    COLD,
    OUTCOMES,
    Run,
    decisions_table,
    requests_table,
    timeline_table,
)
from modelium.results.summary import summarize

_REQUESTS = (
    "arrival_s", "model", "prompt_tokens", "output_tokens", "outcome", "instance",
    "first_token_s", "finish_s", "cold", "retries", "slo_met", "slo_class", "organization",
)  # fmt: skip
_ENDED_AS = {"completed": "completed", "refused": "rejected", "cancelled": "cancelled"}
"""The journal's outcomes in the words of a run; all others failed."""


def about(
    gpus: Sequence[Gpu], slos: dict[str, Slo], policy: str, parameters: dict[str, str], command: str
) -> dict[str, Any]:
    """What the journal has to know of a run so that it can be recorded."""
    return {
        "version": __version__,
        "policy": policy,
        "policy_parameters": parameters,
        "command": command,
        "gpus": [asdict(gpu) for gpu in gpus],
        "slos": {name: asdict(slo) for name, slo in slos.items()},
    }


def runs(journal: Path) -> list[dict[str, Any]]:
    """The runs in a journal, oldest first."""
    with closing(_open(journal)) as db:
        rows = db.execute(
            "SELECT id, began, ended, how, about,"
            " (SELECT count(*) FROM requests WHERE run = runs.id) FROM runs ORDER BY id"
        ).fetchall()
    names = ("run", "began", "ended", "how", "about", "requests")
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return [{**run, "about": json.loads(run["about"])} for run in found]


def read_run(journal: Path, run: int | None = None) -> Run:
    """One run of a journal (the last one, if not given) as tables and figures.

    Raises RecordError if there is no such run, or if it had no requests.
    """
    known = {entry["run"]: entry for entry in runs(journal)}
    number = max(known, default=0) if run is None else run
    if number not in known:
        raise RecordError(f"{journal}: no run {number}; there are {len(known)}")
    told = known[number]["about"]
    with closing(_open(journal)) as db:
        requests = db.execute(
            f"SELECT {', '.join(_REQUESTS)} FROM requests WHERE run = ? ORDER BY arrival_s, rowid",
            (number,),
        ).fetchall()
        decided = db.execute(
            f"SELECT {DECISION_COLUMNS} FROM decisions WHERE run = ? ORDER BY id", (number,)
        ).fetchall()
        held = db.execute(
            "SELECT gpu, start_s, end_s, kind, model, instance, value FROM timeline WHERE run = ?"
            " ORDER BY kind = 'busy', CASE kind WHEN 'busy' THEN gpu END, rowid",
            (number,),
        ).fetchall()
    if not requests:
        raise RecordError(f"{journal}: run {number} had no requests: there is nothing to report")
    columns = dict(zip(_REQUESTS, map(list, zip(*requests, strict=True)), strict=True))
    table = requests_table(_as_run(columns))
    decisions, timeline = decisions_table(map(decision_of, decided)), timeline_table(held)
    slos = {name: Slo(**limits) for name, limits in told.get("slos", {}).items()}
    asked = set(columns["model"])
    figures = summarize(
        table,
        decisions,
        timeline,
        span_s=columns["arrival_s"][-1] or 1.0,
        gpus=[Gpu(**gpu) for gpu in told["gpus"]],
        meta={
            "policy": told["policy"],
            "policy_parameters": told["policy_parameters"],
            "trace": f"live, {journal}, run {number}",
            "seed": 0,
            "command": told["command"],
            "calibration": ["measured: a live run"],
            "versions": {"modelium": told["version"], "pyarrow": metadata.version("pyarrow")},
        },
        slos=slos if asked <= slos.keys() else None,
    )
    return Run(figures, table, decisions, timeline)


def _as_run(columns: dict[str, list[Any]]) -> dict[str, Any]:
    outcomes = [_ENDED_AS.get(outcome, "failed") for outcome in columns["outcome"]]
    assert set(outcomes) <= set(OUTCOMES)
    assert set(columns["cold"]) <= set(COLD)
    nan = float("nan")
    ends = zip(columns["finish_s"], outcomes, strict=True)
    return {
        **columns,
        "outcome": outcomes,
        "first_token_s": [nan if at is None else at for at in columns["first_token_s"]],
        "finish_s": [at if at is not None and o == "completed" else nan for at, o in ends],
        "slo_met": [bool(met) for met in columns["slo_met"]],
        "preemptions": [0] * len(outcomes),
        "cached_tokens": [0] * len(outcomes),
    }


def _open(journal: Path) -> sqlite3.Connection:
    if not journal.is_file():
        raise RecordError(f"{journal}: no such journal")
    try:
        db = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
        db.execute("SELECT id FROM runs LIMIT 1")
    except sqlite3.Error as error:
        raise RecordError(f"{journal}: not a journal of Modelium ({error})") from None
    return db
