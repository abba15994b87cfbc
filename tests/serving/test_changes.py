"""A configuration changed while engines ran on: what differs is said, and replaced in order."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.serving import LaunchSpec, Server, serving
from tests.live import tiny
from tests.live.harness import QUIET_S
from tests.live.running import left_behind, still_there, sweep
from tests.serving.test_starting import complete, ordered

SIZE = {"weights": "1GiB", "kv": "1GiB", "overhead": "1GiB"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    for seed in (1, 2):
        tiny.llama(tmp_path / f"v{seed}", seed=seed)
    yield tmp_path
    sweep(tmp_path)


def asked(folder: Path, *, room: str = "40GiB", keep: bool = False, **model: Any) -> LaunchSpec:
    config: dict[str, Any] = {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": room, "count": 1}]},
        "models": {"m": {"path": str(folder / "v1"), **SIZE, **model}},
        "emulated": {"speed": 1000},
        "metrics": {"enabled": False},
        "live": {"folder": str(folder / "live"), "shutdown": "1s"},
    }  # fmt: skip
    return replace(ordered(config), keep_engines=keep)


@asynccontextmanager
async def served(order: LaunchSpec) -> AsyncIterator[Server]:
    async with asyncio.timeout(QUIET_S), serving(order) as server:
        yield server


async def until(true: Any) -> None:
    async with asyncio.timeout(QUIET_S):
        while not true():
            await asyncio.sleep(0.01)


def ready(server: Server) -> list[str]:
    copies = server.cluster.state.instances.values()
    return [copy.id for copy in copies if copy.phase.value == "ready"]


def length(folder: Path, instance: str) -> int:
    """The context of an engine, as it was started."""
    spec = json.loads((folder / "live" / "emulated" / f"{instance}.json").read_text())
    return int(spec["max_model_len"])


async def begin(folder: Path, **how: Any) -> None:
    """A first run, which leaves its engine m#1."""
    async with served(asked(folder, keep=True, **how)) as server:
        assert (await complete(server.url, "m"))[0] == 200
        assert ready(server) == ["m#1"]
        assert not server.cluster.notes
    gc.collect()


kept = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
"""Engines that outlive a server are, in these tests, children of one process."""


@kept
@pytest.mark.parametrize("room", ["40GiB", "5GiB"], ids=["room for both", "room for one"])
def test_an_engine_with_other_settings_serves_until_it_is_replaced(folder: Path, room: str) -> None:
    async def run() -> None:
        await begin(folder, room=room, settings={"max_model_len": 4096}, pinned=True)
        async with served(
            asked(folder, room=room, settings={"max_model_len": 1024}, pinned=True)
        ) as server:
            [note] = [note for note in server.notes if "m#1" in note]
            assert note == "m#1 ran already and is replaced: max_model_len was 4096, is 1024"
            while ready(server) != ["m#2"]:  # nobody is refused meanwhile
                assert (await complete(server.url, "m"))[0] == 200
            assert (await complete(server.url, "m"))[0] == 200
            await until(lambda: len(server.cluster.state.instances) == 1)
            assert server.cluster.state.copy("m#2").bytes_per_gpu > 0
            assert [length(folder, name) for name in ("m#1", "m#2")] == [4096, 1024]
            kinds = [line.kind for _, line in server.cluster.decisions]
            assert kinds[0] == ("move" if room == "40GiB" else "unload")
            assert "max_model_len was 4096" in server.cluster.decisions[0][1].reason
            await asyncio.sleep(0)
            assert not server.cluster.files.outdated(server.cluster.state.copy("m#2"))
        assert still_there(folder) == []

    asyncio.run(run())


@kept
def test_another_model_of_the_same_name_is_not_served_by_the_old_engine(folder: Path) -> None:
    async def run() -> None:
        await begin(folder)
        async with served(asked(folder, path=str(folder / "v2"))) as server:
            assert not server.cluster.state.instances
            assert not left_behind(folder)
            [note] = [note for note in server.notes if "m#1" in note]
            assert note.startswith(f"m#1 ran already and was ended: path was {folder / 'v1'}, is ")
            assert (await complete(server.url, "m"))[0] == 200
            assert ready(server) == ["m#2"]

    asyncio.run(run())
    assert still_there(folder) == []


@kept
def test_files_that_changed_in_place_are_taken_up(folder: Path) -> None:
    async def run() -> None:
        await begin(folder)
        shutil.copy(folder / "v2" / "model.safetensors", folder / "v1" / "new")
        (folder / "v1" / "new").replace(folder / "v1" / "model.safetensors")
        async with served(asked(folder)) as server:
            [note] = [note for note in server.notes if "m#1" in note]
            assert note == "m#1 ran already and is replaced: model.safetensors was replaced"
            await until(lambda: ready(server) == ["m#2"])

    asyncio.run(run())
    assert still_there(folder) == []


@kept
def test_what_did_not_change_is_left_alone_also_elsewhere(folder: Path) -> None:
    async def run() -> None:
        await begin(folder)
        (folder / "v1").rename(folder / "moved")
        async with served(asked(folder, path=str(folder / "moved"))) as server:
            assert ready(server) == ["m#1"]
            assert not server.cluster.notes
            assert (await complete(server.url, "m"))[0] == 200
            assert not server.cluster.decisions

    asyncio.run(run())
    assert still_there(folder) == []


@kept
def test_engines_of_a_journal_that_has_no_settings_are_adopted_with_a_note(folder: Path) -> None:
    async def run() -> None:
        await begin(folder)
        with closing(sqlite3.connect(folder / "live" / "journal.db")) as db, db:
            db.execute("ALTER TABLE engines DROP COLUMN launch")  # as earlier versions made it
        async with served(asked(folder, settings={"max_model_len": 1024})) as server:
            assert ready(server) == ["m#1"]
            [note] = [note for note in server.notes if "m#1" in note]
            assert "did not keep with what settings. `modelium unload m` has those" in note
            assert (await complete(server.url, "m"))[0] == 200
            assert not server.cluster.decisions

    asyncio.run(run())
    assert still_there(folder) == []
