"""The journal: what is written is read back by the next run, also after a kill, a full disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelium.core import Decision, Gpu, Slo
from modelium.errors import RecordError
from modelium.live.records import journal as module
from modelium.live.records.export import about, read_run, runs
from modelium.live.records.journal import REQUEST_COLUMNS, Journal, JournalError, Record
from modelium.managers.engine import Engine
from modelium.managers.identity import Process
from modelium.results.record import TimelineRow, timeline_table

ENGINE = Engine(
    "a#7", "a", "vllm", "http://127.0.0.1:1", "openai", "a", (0, 1),
    process=Process(12, 3450, "boot"), log="a.log", stages={"process": 1.5}, extra={"port": 1},
)  # fmt: skip
RECORD = Record("a#7", "a", "vllm", ("gpu0", "gpu1"), 123, "starting", 0, None)


def row(**given: object) -> tuple[object, ...]:
    usual: dict[str, object] = {
        "id": "r1", "arrival_s": 1.0, "model": "a", "organization": "", "slo_class": "",
        "prompt_tokens": 5, "output_tokens": 3, "outcome": "completed", "why": "",
        "instance": "a#7", "first_token_s": 1.5, "finish_s": 2.5, "cold": "disk", "retries": 0,
        "slo_met": 1, "gpu_seconds": 0.5,
    }  # fmt: skip
    return tuple({**usual, **given}[name] for name in REQUEST_COLUMNS)


def test_an_engine_is_known_from_before_its_start_to_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db")
    journal.starting(RECORD)
    assert journal.alive() == [RECORD]
    journal.running(ENGINE)
    [there] = Journal(tmp_path / "j.db").alive()
    assert (there.phase, there.engine, there.sleep_level) == ("ready", ENGINE, 0)
    journal.running(ENGINE, 2)
    [there] = journal.alive()
    assert (there.phase, there.sleep_level) == ("asleep", 2)
    journal.ended("a#7", "unloaded")
    assert journal.alive() == []
    assert Journal(tmp_path / "j.db").last_number() == 7


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    code = (
        "import sys, pathlib; from tests.live.test_journal import *;"
        "j = Journal(pathlib.Path(sys.argv[1])); j.starting(RECORD); j.running(ENGINE);"
        "print('written', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    [there] = Journal(path).alive()
    assert there.engine == ENGINE


def fill(journal: Journal) -> None:
    for n in range(10_000):
        journal.decided(Decision(n, "load", "a", f"a#{n}", ("gpu0",), "because 1"))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    # SQLite's own limit stands in for the disk's: the same error, from the same place.
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match=r"j\.db: the journal cannot be used: .*full"):
        fill(journal)
    assert journal.failures == 1
    journal._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    journal.starting(RECORD)
    assert journal.alive() == [RECORD]


def test_rows_that_the_disk_refuses_are_written_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db")
    journal.request(row())
    folder = tmp_path / "gone"
    journal.path = folder / "j.db"  # a disk that is not there for a while
    assert not journal.write_rows()
    journal.path = tmp_path / "j.db"
    journal.request(row(id="r2", arrival_s=2.0))
    assert journal.write_rows()
    ids = journal._db.execute("SELECT id FROM requests ORDER BY arrival_s").fetchall()
    assert ids == [("r1",), ("r2",)]


def test_what_another_thread_is_writing_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "j.db")
    journal.request(row())
    taken, go_on = threading.Event(), threading.Event()

    def connect(path: Path) -> sqlite3.Connection:
        taken.set()
        go_on.wait()
        return usual(path)

    usual = module.connect
    monkeypatch.setattr(module, "connect", connect)
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(journal.write_rows)
        taken.wait()
        threading.Timer(0.5, go_on.set).start()
        [used] = journal.usage()
        assert used["requests"] == 1
        assert writing.result()


def test_settings_needs_and_durations_outlive_the_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db")
    journal.keep("pins", {"a": True})
    journal.learnt_need("a", "h100-80g", 1 << 30)
    journal.learnt_duration("a", "disk", 12.5)
    journal.close("stopped")
    again = Journal(tmp_path / "j.db")
    assert again.kept("pins") == {"a": True}
    assert again.kept("nothing", 3) == 3
    assert again.needs() == {("a", "h100-80g"): 1 << 30}
    assert again.durations() == {("a", "disk"): 12.5}


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_text("something else, and long enough to be a header of a file")
    with pytest.raises(JournalError, match=r"j\.db: the journal cannot be used"):
        Journal(tmp_path / "j.db")


def test_a_run_is_recorded_as_a_simulation_would_be(tmp_path: Path) -> None:
    told = about([Gpu("gpu0", "node0", 80 << 30)], {"a": Slo(ttft_s=2.0)}, "lru", {}, "modelium")
    journal = Journal(tmp_path / "j.db", told)
    line = Decision(1.0, "load", "a", "a#7", ("gpu0",), "1 waiting; frees nothing")
    number = journal.decided(line)
    line.end_s, line.tier, line.stages = 1.4, "disk", {"process": 0.4}
    journal.carried_out(number, line)
    journal.timeline([("gpu0", 1.0, 1.4, "loading", "a", "a#7", 5.0)])
    journal.request(row())
    journal.request(row(id="r2", arrival_s=3.0, outcome="refused", instance=None, cold="",
                        first_token_s=None, finish_s=None, slo_met=0))  # fmt: skip
    journal.request(row(id="r3", arrival_s=4.0, outcome="cancelled",
                        first_token_s=4.2, finish_s=4.5, slo_met=0))  # fmt: skip
    journal.close("stopped")
    run = read_run(tmp_path / "j.db")
    assert run.summary["requests"] == {
        "arrived": 3, "completed": 1, "rejected": 1, "failed": 0, "unfinished": 0, "cancelled": 1,
    }  # fmt: skip
    assert run.summary["loads"] == 1
    assert run.summary["ttft_s"]["p50"] == pytest.approx(0.35)  # of 0.5 and 0.2
    assert run.summary["cold_starts"]["by_tier"]["disk"] == 2
    run.write(tmp_path / "out")
    assert type(run).read(tmp_path / "out").summary == run.summary
    assert [entry["requests"] for entry in runs(tmp_path / "j.db")] == [3]


def test_what_is_under_way_is_written_as_far_as_it_has_come(tmp_path: Path) -> None:
    gpus = [Gpu(name, "node0", 80 << 30) for name in ("gpu0", "gpu1")]
    journal = Journal(tmp_path / "j.db", about(gpus, {}, "lru", {}, "modelium"))
    journal.request(row())

    def held(instance: str, start_s: float, end_s: float) -> TimelineRow:
        return "gpu0", start_s, end_s, "ready", "a", instance, 5.0

    def busy(gpu: str, start_s: float, end_s: float) -> TimelineRow:
        return gpu, start_s, end_s, "busy", "", "", 0.5

    def written() -> list[dict[str, Any]]:
        return read_run(tmp_path / "j.db").timeline.to_pylist()

    def rows(*those: TimelineRow) -> list[dict[str, Any]]:
        return timeline_table(those).to_pylist()

    journal.timeline([held("a#1", 0, 2)], [held("a#2", 1, 5), busy("gpu0", 0, 5)])
    assert journal.write_rows()
    first = held("a#1", 0, 2), held("a#2", 1, 5), busy("gpu0", 0, 5)
    assert written() == rows(*first)  # all that a server leaves which is killed now
    journal.request(row(id="r2"))
    assert journal.write_rows()
    assert written() == rows(*first)
    bins = busy("gpu0", 0, 5), busy("gpu1", 0, 5)
    journal.timeline([held("a#3", 3, 6), *bins], [held("a#2", 1, 10), busy("gpu0", 5, 10)])
    journal.path = tmp_path / "gone" / "j.db"  # a disk that is not there for a while
    assert not journal.write_rows()
    journal.path = tmp_path / "j.db"
    assert written() == rows(*first)
    assert journal.write_rows()
    second = (
        held("a#1", 0, 2), held("a#3", 3, 6), held("a#2", 1, 10),
        busy("gpu0", 0, 5), busy("gpu0", 5, 10), busy("gpu1", 0, 5),
    )  # fmt: skip
    assert written() == rows(*second)
    journal.timeline([held("a#2", 1, 12), busy("gpu0", 5, 10)], [busy("gpu0", 10, 12)])
    journal.close("stopped")
    assert written() == rows(
        held("a#1", 0, 2), held("a#3", 3, 6), held("a#2", 1, 12),
        busy("gpu0", 0, 5), busy("gpu0", 5, 10), busy("gpu0", 10, 12), busy("gpu1", 0, 5),
    )  # fmt: skip


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db").close("stopped")
    with pytest.raises(RecordError, match="run 1 had no requests"):
        read_run(tmp_path / "j.db")
    with pytest.raises(RecordError, match="no run 5; there are 1"):
        read_run(tmp_path / "j.db", 5)
    with pytest.raises(RecordError, match="no such journal"):
        read_run(tmp_path / "other.db")
