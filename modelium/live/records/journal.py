"""The journal: what was decided and what runs, on disk before it happens (SQLite, WAL).

A later executor reads it to adopt the engines that still run. Rare writes (decisions, engines) are
made at once, on the loop's thread; rows of requests and of the timeline come by the thousand and
are written in bundles from a thread. The schema, with the meaning of each column, is `journal.sql`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from modelium.core import Decision
from modelium.errors import ModeliumError
from modelium.managers.engine import Engine
from modelium.storage.permissions import keep_private, private_file, private_folder

REQUEST_COLUMNS = (
    "id", "arrival_s", "model", "organization", "slo_class", "prompt_tokens", "output_tokens",
    "outcome", "why", "instance", "first_token_s", "finish_s", "cold", "retries", "slo_met",
    "gpu_seconds",
)  # fmt: skip
DECISION_COLUMNS = "at_s, kind, model, instance, gpus, reason, end_s, error, tier, stages"
"""Of a row that `decision_of` reads."""
LATER_COLUMNS = (("engines", "asleep_bytes", "INTEGER"), ("engines", "launch", "TEXT"))
"""Columns that journals of earlier versions lack; an older version reads past them."""
READ_TOKENS = "CASE WHEN instance IS NULL THEN 0 ELSE prompt_tokens END"
"""Of a row of requests: prompt tokens that an engine has read."""
SMALL_BYTES = 256 << 20
"""A journal of an earlier version up to this size is written anew, so that it can become smaller;
that takes seconds. A larger one uses the room again that its deleted rows leave."""
KEPT_ROWS = 100_000
"""Rows of requests, and as many of the timeline, that are kept in memory while the disk refuses
them; then the oldest go."""


class JournalError(ModeliumError):
    """The journal cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the journal knows of an engine that has not ended."""

    instance: str
    model: str
    runtime: str
    gpus: tuple[str, ...]
    bytes_per_gpu: int
    phase: str
    sleep_level: int
    engine: Engine | None
    """None: it was being started when the executor ended."""
    asleep_bytes: int | None = None
    """What it was seen to keep of each GPU, if it sleeps."""
    launch: Mapping[str, Any] | None = None
    """What it was started with, as `live.launch` has it; None: an earlier version did not say."""


class Journal:
    """One file. All methods but `write_rows`, `decisions` and `usage` belong to one thread."""

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Open the journal and begin a run. Raises JournalError."""
        self.path = path
        self.failures = 0
        """Writes that the disk refused so far."""
        self.failing = False
        """The latest write was refused."""
        self.began = time.time()
        self._rows: list[Sequence[Any]] = []
        self._ended: list[Sequence[Any]] = []
        """Intervals of the timeline for the next bundle."""
        self._under_way: Sequence[Sequence[Any]] | None = None
        """Those that have not ended, for the next bundle; None: they are as they were written."""
        self._written_so_far: list[int] = []
        """Their rows of the last bundle, which the next one replaces."""
        self._rows_lock = threading.Lock()
        self._writing = threading.Lock()
        with self._told():
            private_folder(path.parent)
            private_file(path)  # SQLite gives its other files the same mode
            for end in ("-wal", "-shm"):
                keep_private(path.with_name(path.name + end))
            self._db = connect(path)
            self._let_shrink()
            schema = resources.files(__package__).joinpath("journal.sql").read_text("utf-8")
            self._db.executescript(schema)
            self._add_columns()
            text = json.dumps(dict(about or {}))
            begun = self._db.execute(
                "INSERT INTO runs (began, about) VALUES (?, ?)", (self.began, text)
            )
            self.run = int(begun.lastrowid or 0)

    def close(self, how: str) -> None:
        """The run is over: `how` it ended."""
        self.write_rows()
        with self._told():
            self._do("UPDATE runs SET ended = ?, how = ? WHERE id = ?", time.time(), how, self.run)
            self._db.close()

    # Engines

    def starting(self, record: Record) -> None:
        """An engine is about to be started."""
        with self._told():
            self._do(
                "INSERT INTO engines (instance, run, model, runtime, gpus, bytes_per_gpu, phase,"
                " began, launch) VALUES (?, ?, ?, ?, ?, ?, 'starting', ?, ?)",
                record.instance, self.run, record.model, record.runtime,
                json.dumps(record.gpus), record.bytes_per_gpu, time.time(),
                json.dumps(record.launch) if record.launch is not None else None,
            )  # fmt: skip

    def running(
        self, engine: Engine, sleep_level: int = 0, asleep_bytes: int | None = None
    ) -> None:
        """An engine is ready, or asleep and keeps `asleep_bytes` of each GPU."""
        phase, text = "asleep" if sleep_level else "ready", json.dumps(engine.as_dict())
        with self._told():
            self._do(
                "UPDATE engines SET phase = ?, sleep_level = ?, engine = ?, asleep_bytes = ?"
                " WHERE instance = ?",
                phase, sleep_level, text, asleep_bytes, engine.instance,
            )  # fmt: skip

    def ended(self, instance: str, why: str) -> None:
        """An engine is gone."""
        with self._told():
            self._do(
                "UPDATE engines SET phase = 'ended', ended = ?, why = ? WHERE instance = ?",
                time.time(), why, instance,
            )  # fmt: skip

    def alive(self) -> list[Record]:
        """The engines that have not ended, as far as the journal knows."""
        with self._told():
            rows = self._db.execute(
                "SELECT instance, model, runtime, gpus, bytes_per_gpu, phase, sleep_level, engine,"
                " asleep_bytes, launch FROM engines WHERE phase != 'ended' ORDER BY rowid"
            ).fetchall()
        return [
            Record(
                instance, model, runtime, tuple(json.loads(gpus)), size, phase, level,
                Engine.from_dict(json.loads(engine)) if engine else None, asleep_bytes,
                json.loads(launch) if launch else None,
            )
            for (
                instance, model, runtime, gpus, size, phase, level, engine, asleep_bytes, launch
            ) in rows
        ]  # fmt: skip

    def last_number(self) -> int:
        """The highest number that an instance ever had."""
        with self._told():
            names = self._db.execute("SELECT instance FROM engines").fetchall()
        return max((int(name.rpartition("#")[2]) for (name,) in names), default=0)

    # Decisions

    def decided(self, line: Decision) -> int:
        """Write a decision before it is carried out; returns its row."""
        with self._told():
            end_s = None if line.end_s != line.end_s else line.end_s
            done = self._do(
                "INSERT INTO decisions (run, at_s, kind, model, instance, gpus, reason, end_s,"
                " error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self.run, line.at_s, line.kind, line.model, line.instance, " ".join(line.gpus),
                line.reason, end_s, line.error,
            )  # fmt: skip
        return int(done.lastrowid or 0)

    def carried_out(self, row: int, line: Decision) -> None:
        """How a decision ended."""
        with self._told():
            self._do(
                "UPDATE decisions SET instance = ?, gpus = ?, reason = ?, end_s = ?, error = ?,"
                " tier = ?, stages = ? WHERE id = ?",
                line.instance, " ".join(line.gpus), line.reason, line.end_s, line.error, line.tier,
                json.dumps(line.stages), row,
            )  # fmt: skip

    def decisions(self, model: str, before: int, most: int) -> list[Decision]:
        """This run's decisions on a model ("": on all) in rows below `before`, newest first.

        With a connection of its own: for any thread.
        """
        with self._told(), closing(connect(self.path)) as db:
            rows = db.execute(
                f"SELECT {DECISION_COLUMNS} FROM decisions WHERE run = ? AND id < ?"
                " AND ? IN ('', model) ORDER BY id DESC LIMIT ?",
                (self.run, before, model, most),
            ).fetchall()
        return list(map(decision_of, rows))

    # Requests and the timeline

    def request(self, row: Sequence[Any]) -> None:
        """Remember a finished request, in the order of `REQUEST_COLUMNS`, for the next bundle."""
        with self._rows_lock:
            self._rows.append(row)
            del self._rows[:-KEPT_ROWS]

    def timeline(
        self, ended: Sequence[Sequence[Any]], under_way: Sequence[Sequence[Any]] = ()
    ) -> None:
        """Remember intervals of residency for the next bundle.

        Those that are under way are written as far as they have come, each time in the place of
        what was written of such before: a run that is killed has lost little.
        """
        with self._rows_lock:
            self._ended += ended
            del self._ended[:-KEPT_ROWS]
            self._under_way = under_way

    def write_rows(self) -> bool:
        """Write the bundle, with a connection of its own; False if the disk refused it.

        When it returns, a bundle that another thread was writing is written, too.
        """
        with self._writing:
            return self._write_rows()

    def _write_rows(self) -> bool:
        with self._rows_lock:
            requests, self._rows = self._rows, []
            ended, self._ended = self._ended, []
            under_way, self._under_way = self._under_way, None
        if not requests and under_way is None:
            return True
        try:
            with self._told(), closing(connect(self.path)) as db, db:
                db.execute("BEGIN")
                self._insert_requests(db, requests)
                written = self._insert_timeline(db, ended, under_way)
        except JournalError:
            with self._rows_lock:
                self._rows[:0], self._ended[:0] = requests, ended
                if self._under_way is None:
                    self._under_way = under_way
            return False
        self._written_so_far = written
        return True

    def _insert_requests(self, db: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
        marks = ", ".join("?" * (len(REQUEST_COLUMNS) + 1))
        names = ", ".join(REQUEST_COLUMNS)
        db.executemany(
            f"INSERT INTO requests (run, {names}) VALUES ({marks})",
            [(self.run, *row) for row in rows],
        )

    def _insert_timeline(
        self,
        db: sqlite3.Connection,
        ended: Sequence[Sequence[Any]],
        under_way: Sequence[Sequence[Any]] | None,
    ) -> list[int]:
        """Gives the rows of the intervals that have not ended."""
        if under_way is None:
            return self._written_so_far
        insert = "INSERT INTO timeline VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        db.executemany(
            "DELETE FROM timeline WHERE rowid = ?", [(row,) for row in self._written_so_far]
        )
        db.executemany(insert, [(self.run, *row) for row in ended])
        return [int(db.execute(insert, (self.run, *row)).lastrowid or 0) for row in under_way]

    def usage(self) -> list[dict[str, Any]]:
        """What each organization has used, in all runs, largest first; deleted rows count, too.

        Prompts of clients that left before they had an engine were read by none. It reads as much
        as there are rows of requests, with a connection of its own: for any thread.
        """
        self.write_rows()
        with self._told(), closing(connect(self.path)) as db:
            rows = db.execute(
                "SELECT organization, sum(n), sum(prompt), sum(output), sum(seconds) FROM"
                f" (SELECT organization, 1 AS n, {READ_TOKENS} AS prompt, output_tokens AS output,"
                " gpu_seconds AS seconds FROM requests WHERE outcome != 'refused' UNION ALL"
                " SELECT organization, requests, prompt_tokens, output_tokens, gpu_seconds"
                " FROM usage) GROUP BY organization ORDER BY sum(seconds) DESC, organization"
            ).fetchall()
        names = ("organization", "requests", "prompt_tokens", "output_tokens", "gpu_seconds")
        return [dict(zip(names, row, strict=True)) for row in rows]

    # What was learnt, and settings that outlive a run

    def learnt_need(self, model: str, gpu_kind: str, bytes_per_gpu: int) -> None:
        """What a copy was seen to take."""
        with self._told():
            self._do(
                "INSERT OR REPLACE INTO needs VALUES (?, ?, ?)", model, gpu_kind, bytes_per_gpu
            )

    def needs(self) -> dict[tuple[str, str], int]:
        """Bytes per GPU by model and kind of GPU, as measured."""
        with self._told():
            rows = self._db.execute("SELECT model, gpu_kind, bytes_per_gpu FROM needs").fetchall()
        return {(model, kind): size for model, kind, size in rows}

    def learnt_asleep(self, model: str, gpu_kind: str, bytes_per_gpu: int) -> None:
        """What a sleeping copy was seen to keep."""
        with self._told():
            self._do(
                "INSERT OR REPLACE INTO asleep VALUES (?, ?, ?)", model, gpu_kind, bytes_per_gpu
            )

    def asleep(self) -> dict[tuple[str, str], int]:
        """Bytes per GPU that sleeping copies keep, by model and kind of GPU, as measured."""
        with self._told():
            rows = self._db.execute("SELECT model, gpu_kind, bytes_per_gpu FROM asleep").fetchall()
        return {(model, kind): size for model, kind, size in rows}

    def learnt_duration(self, model: str, what: str, seconds: float) -> None:
        """The running mean of a load or wake."""
        with self._told():
            self._do("INSERT OR REPLACE INTO durations VALUES (?, ?, ?)", model, what, seconds)

    def durations(self) -> dict[tuple[str, str], float]:
        """Seconds by model and tier, as measured."""
        with self._told():
            rows = self._db.execute("SELECT model, what, seconds FROM durations").fetchall()
        return {(model, what): seconds for model, what, seconds in rows}

    def forget_learnt(self, model: str) -> None:
        """Needs and durations of a model that is served no more."""
        with self._told():
            self._do("DELETE FROM asleep WHERE model = ?", model)
            self._do("DELETE FROM needs WHERE model = ?", model)
            self._do("DELETE FROM durations WHERE model = ?", model)

    def keep(self, name: str, value: Any) -> None:
        """Set a setting that the next run finds again."""
        with self._told():
            self._do("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, json.dumps(value))

    def kept(self, name: str, default: Any = None) -> Any:
        """Read such a setting."""
        with self._told():
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else default

    def _let_shrink(self) -> None:
        """Have SQLite keep what it needs to give room back later."""
        if self._db.execute("PRAGMA auto_vacuum").fetchone()[0]:
            return
        if self.path.stat().st_size > SMALL_BYTES:
            return
        with contextlib.suppress(sqlite3.OperationalError):  # no room on the disk for two of it
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("VACUUM")

    def _add_columns(self) -> None:
        for table, column, kind in LATER_COLUMNS:
            known = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
            if column not in known:
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")

    def _do(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
            self.failing = False
        except (sqlite3.Error, OSError) as error:
            self.failures += 1
            self.failing = True
            raise JournalError(f"{self.path}: the journal cannot be used: {error}") from None


def decision_of(row: Sequence[Any]) -> Decision:
    """A decision from its row (`DECISION_COLUMNS`)."""
    at_s, kind, model, instance, gpus, reason, end_s, error, tier, stages = row
    end = float("nan") if end_s is None else end_s
    return Decision(
        at_s, kind, model, instance, tuple(gpus.split()), reason, end, error, tier,
        json.loads(stages),
    )  # fmt: skip


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal's file, for a thread of its own. Raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db
