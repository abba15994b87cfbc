"""What a run leaves behind: one folder of tables, the same from both worlds.

requests.parquet   a row a request, in order of arrival
decisions.parquet  a row an action, in order of time
timeline.parquet   who held what memory of which GPU when, and how busy each GPU was
summary.json       the figures of `modelium.results.summary`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from modelium.core import Decision
from modelium.errors import RecordError
from modelium.results import arrow

if TYPE_CHECKING:
    import pyarrow as pa

OUTCOMES = ("completed", "rejected", "failed", "unfinished", "cancelled")
"""Every request ends as exactly one of these; only live clients leave ("cancelled")."""

MARKS = ("summary.json", "comparison.json")
"""One of them is in every folder that a run, or a comparison of several, has left."""

COLD = ("", "host", "disk", "sleep-1", "sleep-2")
"""The tier whose load or wake a request waited for; "" if it found a ready instance."""

REQUEST_COLUMNS = {
    "arrival_s": "float64",
    "model": "dictionary",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "outcome": "dictionary of OUTCOMES",
    "instance": "dictionary; null if it never reached one",
    "first_token_s": "float64, NaN if none; for models that answer in one piece: the answer",
    "finish_s": "float64, NaN unless completed",
    "cold": "dictionary of COLD",
    "preemptions": "int32",
    "cached_tokens": "int32: prompt tokens found in the prefix cache",
    "retries": "int32",
    "slo_met": "bool: completed within all limits of its SLO",
    "slo_class": "dictionary (only if the trace has it)",
    "organization": "dictionary (only if the trace has it)",
}
DECISION_COLUMNS = {
    "at_s": "float64",
    "kind": "dictionary: load unload sleep wake move",
    "model": "dictionary",
    "instance": "string",
    "gpus": "string: names joined by a blank",
    "reason": "string",
    "end_s": "float64, NaN if it had not ended",
    "error": "string; empty if it succeeded, 'cancelled: ...' if it was stopped on purpose",
    "tier": "dictionary of COLD",
    "stages": "string: JSON object, seconds by stage",
}
TIMELINE_COLUMNS = {
    "gpu": "dictionary",
    "start_s": "float64",
    "end_s": "float64",
    "kind": "dictionary: loading weights kv overhead asleep leaving (value: bytes held), "
    "busy (value: share of the bin), kv_used (value: mean bytes in the bin)",
    "model": "dictionary; empty for busy",
    "instance": "dictionary; empty for busy and kv_used",
    "value": "float64",
}

SUMMARY_KEYS = (
    "policy", "policy_parameters", "trace", "seed", "span_s", "requests", "slo_attainment", "slos",
    "slo_alone", "goodput_per_s", "ttft_s", "tpot_s", "e2e_s", "cold_starts", "loads", "unloads",
    "sleeps", "wakes", "moves", "failed_actions", "gpu", "gpu_seconds", "fairness", "wall_s",
    "requests_per_wall_s", "decide_s", "versions", "command", "assumptions", "calibration", "gpus",
    "per_model",
)  # fmt: skip
"""Of summary.json, besides `bounds` where there are any."""

Floats: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Codes: TypeAlias = "np.ndarray[Any, np.dtype[np.integer[Any]]]"
Column: TypeAlias = "np.ndarray[Any, Any] | tuple[np.ndarray[Any, Any], Sequence[str]] | list[Any]"
"""An array, or codes with their table of names (-1: none), or a list of plain values."""

TimelineRow = tuple[str, float, float, str, str, str, float]
"""gpu, start_s, end_s, kind, model, instance, value."""

TABLES = {
    "requests": REQUEST_COLUMNS,
    "decisions": DECISION_COLUMNS,
    "timeline": TIMELINE_COLUMNS,
}


def requests_table(columns: Mapping[str, Column]) -> pa.Table:
    """Build requests.parquet's table from columns named as in `REQUEST_COLUMNS`."""
    return _table(REQUEST_COLUMNS, columns)


def decisions_table(decisions: Iterable[Decision]) -> pa.Table:
    """Build decisions.parquet's table from the decision log."""
    rows = list(decisions)
    columns: dict[str, Column] = {name: [getattr(d, name) for d in rows] for name in _AS_IS}
    columns["gpus"] = [" ".join(d.gpus) for d in rows]
    columns["stages"] = _as_json([d.stages for d in rows])
    return _table(DECISION_COLUMNS, columns)


def _as_json(stages: Iterable[dict[str, float]]) -> list[str]:
    """Undisturbed loads of a model take the same time, and all exits: each is written once."""
    keys = [tuple(one.items()) for one in stages]
    texts = {key: json.dumps(dict(key)) for key in dict.fromkeys(keys)}
    return [texts[key] for key in keys]


def timeline_table(rows: Iterable[TimelineRow], *more: Mapping[str, Column]) -> pa.Table:
    """Build timeline.parquet's table from rows, then `more` in columns."""
    columns = [list(c) for c in zip(*rows, strict=True)] or [[] for _ in TIMELINE_COLUMNS]
    first: Mapping[str, Column] = dict(zip(TIMELINE_COLUMNS, columns, strict=True))
    whole = {
        name: _joined([part[name] for part in (first, *more)], words)
        for name, words in TIMELINE_COLUMNS.items()
    }
    return _table(TIMELINE_COLUMNS, whole)


def floats(table: pa.Table, column: str) -> Floats:
    """A column of numbers or truth values as an array."""
    return arrow.array(table[column])


def labels(table: pa.Table, column: str) -> tuple[Codes, list[str]]:
    """A column of names as codes (-1: none) and the table of names that they point into."""
    import pyarrow as pa

    chunks = table[column].unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, np.int32), []
    whole = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return arrow.codes(whole), whole.dictionary.to_pylist()


@dataclass
class Run:
    """One run: its tables, and the figures of `modelium.results.summary` about them."""

    summary: dict[str, Any]
    requests: pa.Table
    decisions: pa.Table
    timeline: pa.Table

    def write(self, folder: Path, *, report_html: str | None = None, replace: bool = False) -> None:
        """Write the folder, whole or not at all; raises RecordError as `new_folder` does."""
        with new_folder(folder, replace=replace) as part:
            self.fill(part)
            if report_html is not None:
                (part / "report.html").write_text(report_html, encoding="utf-8")

    def fill(self, folder: Path) -> None:
        """Write tables and figures into a folder that exists."""
        import pyarrow.parquet as pq

        for name, spec in TABLES.items():
            table = getattr(self, name)
            texts = [c for c in table.column_names if not spec[c].startswith(_NUMBERS)]
            # Dictionaries gain nothing on times, and lz4 costs half the CPU time of zstd.
            file = folder / f"{name}.parquet"
            pq.write_table(table, file, compression="lz4", use_dictionary=texts)
        text = json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a folder that `write` made. Raises RecordError, naming the file that is wrong."""
        if not folder.is_dir():
            raise RecordError(f"{folder}: no such folder; a run's folder holds summary.json")
        tables = {name: _read_table(folder / f"{name}.parquet", TABLES[name]) for name in TABLES}
        return cls(_read_summary(folder / "summary.json"), **tables)


_NUMBERS = ("float64", "int32", "bool")
_AS_IS = [c for c in DECISION_COLUMNS if c not in ("gpus", "stages")]


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder under another name, which takes the name `folder` at the end.

    After any error it is gone instead. Raises RecordError if `folder` exists (with `replace`: if
    it holds no run and no comparison of runs) or the disk refuses.
    """
    _check_target(folder, replace)
    part = _part(folder)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _rename(part, folder)
    except OSError as error:
        raise RecordError(f"{folder}: cannot write the run: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_folder(folder: Path, *, replace: bool = False) -> None:
    """Raise what `new_folder` would, for a run that is only written hours later."""
    _check_target(folder, replace)
    part = _part(folder)
    try:
        part.mkdir(parents=True, exist_ok=True)
        part.rmdir()
    except OSError as error:
        raise RecordError(f"{folder}: no run can be written: {error.strerror or error}") from None


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.part")


def _check_target(folder: Path, replace: bool) -> None:
    if not folder.exists():
        return
    if not replace:
        raise RecordError(
            f"{folder} exists already: choose another output folder, or replace it (--force)"
        )
    if not any((folder / name).is_file() for name in MARKS):
        raise RecordError(f"{folder} exists and is not the folder of a run: it is left alone")


def _rename(part: Path, folder: Path) -> None:
    if not folder.exists():
        part.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _table(spec: Mapping[str, str], columns: Mapping[str, Column]) -> pa.Table:
    """Raises ValueError for a missing, unknown or short column: a mistake of the caller."""
    import pyarrow as pa

    missing, unknown = _required(spec) - columns.keys(), columns.keys() - spec.keys()
    if missing or unknown:
        raise ValueError(f"missing columns {sorted(missing)}, unknown columns {sorted(unknown)}")
    order = [name for name in spec if name in columns]
    return pa.table({name: _array(columns[name], spec[name]) for name in order})


def _array(column: Column, words: str) -> pa.Array:
    if isinstance(column, tuple):
        return arrow.names(*column)
    kind = _kind(words)
    if kind == "string":
        return arrow.texts(column)
    if kind == "dictionary":
        return arrow.names(*_coded(column))
    return arrow.numbers(np.asarray(column, kind))


def _coded(column: Column) -> tuple[Codes, Sequence[str]]:
    if isinstance(column, tuple):
        return column
    known = [name for name in dict.fromkeys(column) if name is not None]
    code_of = {name: code for code, name in enumerate(known)}
    return np.array([code_of.get(name, -1) for name in column], np.int32), known


def _joined(parts: Sequence[Column], words: str) -> Column:
    """One column of several, one under the other."""
    kind = _kind(words)
    if kind != "dictionary":
        return np.concatenate([np.asarray(part, kind) for part in parts])
    coded = [_coded(part) for part in parts]
    known = {name: k for k, name in enumerate(dict.fromkeys(n for _, ns in coded for n in ns))}
    tables = [np.array([*(known[name] for name in ns), -1], np.int32) for _, ns in coded]
    codes = [table[codes] for table, (codes, _) in zip(tables, coded, strict=True)]
    return np.concatenate(codes), list(known)


def _arrow_type(words: str) -> pa.DataType:
    import pyarrow as pa

    kind = _kind(words)
    if kind == "dictionary":
        return pa.dictionary(pa.int32(), pa.string())
    return {"float64": pa.float64, "int32": pa.int32, "bool": pa.bool_, "string": pa.string}[kind]()


def _kind(words: str) -> str:
    return words.split(maxsplit=1)[0].rstrip(",:;")


def _required(spec: Mapping[str, str]) -> set[str]:
    return {name for name, words in spec.items() if "only if" not in words}


def _read_table(file: Path, spec: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except FileNotFoundError:
        raise RecordError(f"{file.parent} is not the folder of a run: no {file.name}") from None
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise RecordError(f"{file}: not a whole Parquet file ({why})") from None
    missing = _required(spec) - set(table.column_names)
    if missing:
        raise RecordError(f"{file}: no column {', '.join(sorted(missing))}")
    known = [c for c in spec if c in table.column_names]
    return pa.table({c: _as(table[c], spec[c], f"{file}: {c}") for c in known})


def _as(column: pa.ChunkedArray, words: str, place: str) -> pa.ChunkedArray:
    import pyarrow as pa

    kind = _arrow_type(words)
    try:
        return column.cast(kind)
    except pa.ArrowException:
        raise RecordError(f"{place} is {column.type}, expected {words}") from None


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{file.parent} is not the folder of a run: no {file.name}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: not a summary ({error})") from None
    if not isinstance(summary, dict):
        raise RecordError(f"{file}: not the summary of a run: not a JSON object")
    missing = [key for key in SUMMARY_KEYS if key not in summary]
    if missing:
        raise RecordError(f"{file}: not the summary of a run: it has no {missing[0]!r}")
    return summary
