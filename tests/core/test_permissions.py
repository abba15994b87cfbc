"""What only its owner may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelium.live.records.journal import Journal
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine, Order
from modelium.storage.permissions import private_file, private_folder, write_private
from tests.live.harness import INSTANT


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_what_was_open_to_all_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir(mode=0o755)
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        (folder / name).touch(0o644)
    logs = folder / "emulated"
    logs.mkdir(mode=0o755)
    for name in ("a#1.log", "a#1.json"):
        (logs / name).touch(0o644)
    journal = Journal(folder / "journal.db")
    journal.keep("pins", {"a": True})
    EmulatedManager(folder=logs)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {mode(path) for path in files} == {0o600}
    assert mode(folder) == mode(logs) == 0o700
    journal.close("stopped")


def test_what_an_engine_is_told_and_writes_is_its_owners(tmp_path: Path) -> None:
    manager = EmulatedManager(folder=tmp_path / "live" / "emulated")
    engine: Engine = manager.start(Order("a#1", "a", settings=INSTANT))
    try:
        files = sorted((tmp_path / "live" / "emulated").iterdir())
        assert [file.name for file in files] == ["a#1.json", "a#1.log"]
        assert {mode(file) for file in files} == {0o600}
    finally:
        manager.stop(engine, 5.0)


def test_folders_of_others_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sticky = tmp_path / "here", tmp_path / "tmp"
    (here / "below").mkdir(parents=True)
    here.chmod(0o755)
    sticky.mkdir()
    sticky.chmod(0o1777)
    monkeypatch.chdir(here / "below")
    for folder in (here, here / "below", sticky):
        before = mode(folder)
        private_folder(folder)
        assert mode(folder) == before


def test_a_text_replaces_another_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    file.write_text("a long text that was there before")
    write_private(file, "{}")
    assert (file.read_text(), mode(file)) == ("{}", 0o600)
    private_file(file)
    assert file.read_text() == "{}"
