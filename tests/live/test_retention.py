"""What is too old goes; what organizations have used stays known."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import pytest

from modelium.core import Decision
from modelium.live.records import journal as journals
from modelium.live.records import retention
from modelium.live.records.export import runs
from modelium.live.records.journal import Journal
from modelium.live.records.retention import delete_logs, delete_rows, give_back, tidy
from modelium.live.settings import Retention
from modelium.testing.scenarios import model
from tests.live.house import house
from tests.live.test_journal import ENGINE, RECORD, row

DAY_S = 86400.0


def filled(path: Path, requests: int = 2500) -> Journal:
    """A journal whose first run was forty days ago."""
    old = Journal(path)
    old.starting(RECORD)
    old.running(ENGINE)
    old.ended("a#7", "unloaded")
    for n in range(requests):
        outcome = ("completed", "completed", "refused", "cancelled")[n % 4]
        instance = "a#7" if outcome == "completed" else None
        organization = ("acme", "")[n // 4 % 2]
        old.request(row(id=f"r{n}", arrival_s=n / 10, outcome=outcome, instance=instance,
                        organization=organization))  # fmt: skip
    for n in range(1200):
        old.decided(Decision(n / 5, "load", "a", f"a#{n}", ("gpu0",), "because"))
    old.timeline([("gpu0", 1.0, 1.4, "loading", "a", "a#7", 5.0)])
    old.close("stopped")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE runs SET began = began - ?, ended = ended - ?", (40 * DAY_S,) * 2)
        db.execute("UPDATE engines SET ended = ended - ?", (40 * DAY_S,))
    db.close()
    now = Journal(path)
    now.request(row(id="new", organization="acme", arrival_s=0.5))
    now.write_rows()
    return now


def counts(journal: Journal) -> dict[str, int]:
    tables = ("runs", "engines", "requests", "decisions", "timeline", "usage")
    db = journal._db
    return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_rows_go_in_steps_and_usage_stays_right(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.db")
    before, size = journal.usage(), (tmp_path / "j.db").stat().st_size
    assert [used["requests"] for used in before] == [939 + 1, 936]
    limit, steps = time.time() - 30 * DAY_S, 0
    while delete_rows(journal.path, journal.run, limit):
        steps += 1
        for used, known in zip(journal.usage(), before, strict=True):
            assert used == pytest.approx(known)
    assert steps >= 4  # more than a thousand rows at a time are never deleted
    there = counts(journal)
    assert 2 <= there["usage"] <= 4, "by organization; and by day, about midnight"
    assert (there["requests"], there["decisions"], there["timeline"]) == (1, 0, 0)
    assert [run["run"] for run in runs(journal.path)] == [1, 2], "the latest engine names the first"
    while give_back(journal.path):
        pass
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (tmp_path / "j.db").stat().st_size < size / 2
    assert journal.last_number() == 7, "no instance ever gets a number again"
    journal.close("stopped")


def test_a_run_whose_rows_are_gone_goes_too(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.db", 10)
    journal.starting(type(RECORD)("a#8", "a", "vllm", ("gpu0",), 1, "starting", 0, None))
    journal.ended("a#8", "unloaded")
    while delete_rows(journal.path, journal.run, time.time() - 30 * DAY_S):
        pass
    assert [run["run"] for run in runs(journal.path)] == [2]
    assert journal.last_number() == 8
    # The run under way stays, however short the time is that rows are kept.
    while delete_rows(journal.path, journal.run, time.time() + DAY_S):
        pass
    assert [run["run"] for run in runs(journal.path)] == [2]
    assert journal.usage()[0]["organization"] == "acme"
    journal.close("stopped")


def test_a_step_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.db", 50)
    before = counts(journal)
    journal._db.execute(
        "CREATE TRIGGER no BEFORE DELETE ON requests BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    with pytest.raises(sqlite3.Error, match="full"):
        delete_rows(journal.path, journal.run, time.time())
    assert counts(journal) == before
    journal.close("stopped")


@pytest.mark.parametrize("small", [True, False])
def test_a_journal_of_an_earlier_version_is_taken_over(
    tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j.db"
    with sqlite3.connect(path) as db:
        db.executescript(
            "CREATE TABLE runs (id INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL,"
            " how TEXT NOT NULL DEFAULT '', about TEXT NOT NULL);"
            "CREATE TABLE requests (run INTEGER NOT NULL, id TEXT NOT NULL,"
            " arrival_s REAL NOT NULL, model TEXT NOT NULL, organization TEXT NOT NULL,"
            " slo_class TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,"
            " output_tokens INTEGER NOT NULL, outcome TEXT NOT NULL, why TEXT NOT NULL,"
            " instance TEXT, first_token_s REAL, finish_s REAL, cold TEXT NOT NULL,"
            " retries INTEGER NOT NULL, slo_met INTEGER NOT NULL, gpu_seconds REAL NOT NULL);"
            "INSERT INTO runs VALUES (1, 1e9, 1e9, 'stopped', '{}');"
        )
        marks = ", ".join("?" * 17)
        db.execute(f"INSERT INTO requests VALUES ({marks})", (1, *row(organization="acme")))
    db.close()
    if not small:
        monkeypatch.setattr(journals, "SMALL_BYTES", 0)
    journal = Journal(path)
    assert bool(journal._db.execute("PRAGMA auto_vacuum").fetchone()[0]) is small
    [used] = journal.usage()
    assert (used["organization"], used["requests"], used["prompt_tokens"]) == ("acme", 1, 5)
    while delete_rows(path, journal.run, time.time() - DAY_S):
        pass
    assert journal.usage() == [used]
    assert not give_back(path) or small
    journal.close("stopped")


def test_logs_of_ended_engines_are_few_and_those_of_the_others_stay(tmp_path: Path) -> None:
    def log(name: str, age_s: float) -> Path:
        file = tmp_path / f"{name}.log"
        for path in (file, tmp_path / f"{name}.json"):
            path.write_text("said")
        os.utime(file, (time.time() - age_s,) * 2)
        return file

    old, running, later = log("org%2Fa#1", 500), log("b#2", 900), log("c#9", 800)
    kept, dropped, server = log("a#4", 100), log("a#3", 200), log("triton-gpu0", 9000)
    gone = delete_logs([tmp_path], {"b#2"}, 8, 1, 0.0)
    assert set(gone) == {old, dropped}
    assert not (tmp_path / "a#3.json").exists()
    assert all(file.exists() for file in (running, later, kept, server))
    assert delete_logs([tmp_path], {"b#2"}, 8, 100, time.time() - 50) == [kept]


def test_a_running_cluster_keeps_what_it_needs(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, [model("a", 30), model("b", 30)]) as here:
            cluster = here.cluster
            cluster.managers = {"engines": cluster.managers["emulated"], **cluster.managers}
            await here.ask("a")
            await here.ask("b")
            await here.ask("a")
            cluster.retention = Retention(keep_s=-DAY_S, keep_logs=0)
            await tidy(cluster)
            logs = {file.stem for file in (tmp_path / "engines").glob("*.log")}
            assert logs == set(cluster.state.instances)
            assert [used["requests"] for used in cluster.journal.usage()] == [3]
            await here.ask("a")
            assert [used["requests"] for used in cluster.journal.usage()] == [4]
            assert {record.instance for record in cluster.journal.alive()} == logs

    asyncio.run(run())


def test_a_disk_that_refuses_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVERY_S", 0.01)

    def refuse(*given: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(retention, "delete_rows", refuse)

    async def run() -> None:
        async with house(tmp_path, [model("a", 30)]) as here:
            await here.until(lambda: here.said("watch-fault"))
            [told, *_] = here.said("watch-fault")
            assert told["watch"] == "retention"
            assert "disk is full" in told["why"]
            assert await here.ask("a")

    asyncio.run(run())
