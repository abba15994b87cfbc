"""How long the journal and the logs of engines are kept; what is deleted stays in the usage.

All of it happens in a thread, with a connection of its own and in small steps: neither the loop nor
the journal's other writers wait for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from modelium.live.records.journal import READ_TOKENS, JournalError, connect

if TYPE_CHECKING:
    from modelium.live.context import LiveContext

EVERY_S = 600.0
PAUSE_S = 0.05
"""Between two steps."""
STEP_ROWS = 1000
STEP_PAGES = 1000
"""Freed pages that go back to the file system in one step: 4 MiB."""
_OF_AN_INSTANCE = re.compile(r"#(\d+)$")


async def tidy_regularly(cluster: LiveContext) -> None:
    """Delete what is too old, now and then again, for ever."""
    while True:
        try:
            await tidy(cluster)
        except (JournalError, sqlite3.Error, OSError) as error:  # a full disk: logs went first
            why = f"what is too old cannot be deleted: {error}"
            cluster.tell_news("watch-fault", watch="retention", why=why)
        await asyncio.sleep(EVERY_S)


async def tidy(cluster: LiveContext) -> None:
    """Delete what is too old. Raises JournalError, sqlite3.Error, OSError."""
    limits, path = cluster.retention, cluster.journal.path
    before = time.time() - limits.keep_s
    folders = [path.parent / runtime for runtime in cluster.managers]
    here = {record.instance for record in cluster.journal.alive()} | set(cluster.state.instances)
    newest = cluster.last_number
    await cluster.call(delete_logs, folders, here, newest, limits.keep_logs, before)
    while await cluster.call(delete_rows, path, cluster.journal.run, before):
        await asyncio.sleep(PAUSE_S)
    while await cluster.call(give_back, path):
        await asyncio.sleep(PAUSE_S)


def delete_logs(
    folders: Iterable[Path], here: Collection[str], newest: int, keep: int, before: float
) -> list[Path]:
    """Delete logs of engines that have ended, with what those were told; gives them.

    `here` are instances that are there; those numbered above `newest` have come since. The `keep`
    latest stay, unless they are older than `before` (Unix time).
    """
    logs: list[tuple[float, Path]] = []
    for folder in folders:
        for file in folder.glob("*.log"):
            number = _OF_AN_INSTANCE.search(file.stem)
            if number is None or int(number[1]) > newest or _instance(file) in here:
                continue
            with contextlib.suppress(FileNotFoundError):
                logs.append((file.stat().st_mtime, file))
    latest_first = sorted(logs, reverse=True)
    gone = [f for n, (at, f) in enumerate(latest_first) if n >= keep or at < before]
    for file in gone:
        for one in (file, file.with_name(f"{file.stem}.json")):
            one.unlink(missing_ok=True)
    return gone


def delete_rows(path: Path, run: int, before: float) -> bool:
    """Delete some rows from before a moment (Unix time), but add requests to the usage.

    True if there may be more. `run`, the one under way, stays. Raises sqlite3.Error.
    """
    with closing(connect(path)) as db:
        runs = db.execute("SELECT id, began FROM runs WHERE began < ? ORDER BY id", (before,))
        for number, began in runs.fetchall():
            if any(_delete(db, table, number, before - began) for table in _AGES):
                return True
        db.execute("BEGIN IMMEDIATE")
        with db:
            # The latest engine stays: the next one's number follows from its own.
            db.execute(
                "DELETE FROM engines WHERE phase = 'ended' AND ended < ?"
                " AND rowid < (SELECT max(rowid) FROM engines)",
                (before,),
            )
            db.execute(
                "DELETE FROM runs WHERE began < ? AND id != ?"
                + "".join(
                    f" AND NOT EXISTS (SELECT 1 FROM {table} WHERE run = runs.id)"
                    for table in (*_AGES, "engines")
                ),
                (before, run),
            )
    return False


_AGES = {"requests": "arrival_s", "decisions": "at_s", "timeline": "end_s"}
"""Tables, with the column that tells a row's age; each pair has an index."""


def _delete(db: sqlite3.Connection, table: str, run: int, before_s: float) -> int:
    """Delete up to `STEP_ROWS` of a run's rows; gives how many."""
    age = _AGES[table]
    found = db.execute(
        f"SELECT rowid FROM {table} WHERE run = ? AND {age} < ? ORDER BY {age} LIMIT ?",
        (run, before_s, STEP_ROWS),
    ).fetchall()
    if not found:
        return 0
    which = f"({', '.join(str(row) for (row,) in found)})"
    db.execute("BEGIN IMMEDIATE")
    with db:
        if table == "requests":
            db.execute(
                "INSERT INTO usage SELECT date(runs.began + arrival_s, 'unixepoch'), organization,"
                f" model, count(*), sum({READ_TOKENS}), sum(output_tokens), sum(gpu_seconds)"
                f" FROM requests JOIN runs ON runs.id = requests.run"
                f" WHERE requests.rowid IN {which} AND outcome != 'refused'"
                " GROUP BY 1, 2, 3 ON CONFLICT DO UPDATE SET"
                " requests = requests + excluded.requests,"
                " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " output_tokens = output_tokens + excluded.output_tokens,"
                " gpu_seconds = gpu_seconds + excluded.gpu_seconds"
            )
        db.execute(f"DELETE FROM {table} WHERE rowid IN {which}")
    return len(found)


def give_back(path: Path) -> bool:
    """Give some pages that are free back to the file system; True if there may be more."""
    with closing(connect(path)) as db:

        def free() -> int:
            return int(db.execute("PRAGMA freelist_count").fetchone()[0])

        if not (before := free()) or not db.execute("PRAGMA auto_vacuum").fetchone()[0]:
            return False
        db.execute(f"PRAGMA incremental_vacuum({STEP_PAGES})").fetchall()
        return 0 < free() < before


def _instance(log: Path) -> str:
    """The instance whose log this is."""
    return unquote(log.stem)
