"""A new version through `incoming/`: the version before serves until it is ready, or for good."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelium.analyze import analyze
from modelium.live.engines import model_files
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine, Order, StartError
from modelium.repository import ModelRepository, Replacement, RepositoryError, watching
from modelium.serving import Server, served_models, serving
from tests.live import tiny
from tests.live.harness import QUIET_S
from tests.live.running import still_there, sweep
from tests.serving.test_starting import complete, ordered

BROKEN = "its weights are broken"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are taken for whole after a moment; engines of some do not start, or not for ever."""
    monkeypatch.setattr(watching, "STILL_S", 0.2)
    monkeypatch.setattr(model_files, "STILL_S", 0.2)
    monkeypatch.setattr(model_files, "LOOK_S", 0.02)
    start = EmulatedManager.start

    def maybe(self: EmulatedManager, order: Order, *more: Any) -> Engine:
        if order.path is not None and (order.path / "broken.json").exists():
            raise StartError(BROKEN, final=True)
        if order.path is not None and (order.path / "stuck.json").exists():
            order.cancelled.wait()
            raise StartError("it was cancelled")
        return start(self, order, *more)

    monkeypatch.setattr(EmulatedManager, "start", maybe)


@dataclass
class Place:
    """A server with a repository that has `a`."""

    server: Server
    repository: ModelRepository
    news: list[tuple[str, Any]]

    def put(self, name: str, seed: int, mark: str = "") -> None:
        """All of a version at once."""
        folder = tiny.llama(self.repository.path / ".made" / name, seed=seed)
        if mark:
            (folder / f"{mark}.json").write_text("{}")
        folder.rename(self.repository.incoming / name)

    async def said(self, kind: str, count: int = 1) -> str:
        """The last news of a kind, when there are so many."""
        while len(found := [about for what, about in self.news if what == kind]) < count:
            await asyncio.sleep(0.01)
        return str(found[-1]["why"])

    def ready(self) -> list[str]:
        copies = self.server.cluster.state.instances.values()
        return [copy.id for copy in copies if copy.phase.value == "ready"]

    def model(self) -> bytes:
        return (self.repository.folder("a") / "model.safetensors").read_bytes()

    async def asks(self) -> None:
        assert (await complete(self.server.url, "a"))[0] == 200


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweep(tmp_path)


@asynccontextmanager
async def place(folder: Path, room: str = "40GiB", **more: Any) -> AsyncIterator[Place]:
    repository = ModelRepository(folder / "repository")
    if not repository.list_models():
        repository.add_model_from_incoming(tiny.llama(folder / "first", seed=1), "a")
    order = ordered({
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": room, "count": 1}]},
        "model_repository": str(repository.path),
        "emulated": {"enabled": True, "speed": 1000},
        "metrics": {"enabled": False},
        "live": {"folder": str(folder / "live"), "shutdown": "1s", "load_tries": 1},
        **more,
    })  # fmt: skip
    news: list[tuple[str, Any]] = []
    async with asyncio.timeout(QUIET_S), serving(order) as server:
        server.cluster.watchers.news.append(lambda what, about: news.append((what, about)))
        yield Place(server, repository, news)


def run(work: Any) -> None:
    asyncio.run(work)


def test_a_new_version_takes_the_place_of_the_old_one_without_a_gap(folder: Path) -> None:
    async def act() -> None:
        async with place(folder) as here:
            await here.asks()
            assert here.ready() == ["a#1"]
            before, over = here.model(), asyncio.Event()

            async def go_on() -> None:
                while not over.is_set():
                    await here.asks()

            asking = asyncio.create_task(go_on())
            here.put("a", seed=2)
            assert await here.said("new-model") == "a new version has taken its place"
            assert here.ready() == ["a#2"]
            assert here.model() != before
            # One that does not load: the version before is put back, and told of.
            now = here.model()
            here.put("a", seed=3, mark="broken")
            why = await here.said("refused-model")
            assert why == f"not replaced: a#2 serves on: its replacement does not load: {BROKEN}"
            over.set()
            await asking
            assert here.ready() == ["a#2"]
            assert here.model() == now
            [row] = here.server.operations.models()
            assert (row["files_changed"], row["files_error"], row["error"]) == ("", "", "")
            explained = here.repository.incoming / "a.why.txt"
            assert explained.read_text().strip() == why.removeprefix("not replaced: ")
            assert (here.repository.incoming / "a" / "broken.json").exists()
            # Put right where it lies, it is taken up.
            (here.repository.incoming / "a" / "broken.json").unlink()
            assert await here.said("new-model", 2)
            assert here.ready() == ["a#4"]
            assert not explained.exists()
            await here.asks()
        assert still_there(folder) == []

    run(act())


def test_where_there_is_no_room_for_both_the_old_one_comes_back(folder: Path) -> None:
    async def act() -> None:
        async with place(folder, room="2GiB") as here:
            await here.asks()
            before = here.model()
            here.put("a", seed=3, mark="broken")
            assert BROKEN in await here.said("refused-model")
            assert here.model() == before
            await here.asks()
            assert here.ready() == ["a#3"]

    run(act())
    assert still_there(folder) == []


def test_each_reason_is_told_when_more_than_one_thing_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Replacement) -> None:
        self._lock.close()
        raise RepositoryError("the disk is full")

    async def act() -> None:
        async with place(folder) as here:
            await here.asks()
            with monkeypatch.context() as patch:
                patch.setattr(Replacement, "commit", fails)
                here.put("a", seed=2)
                await here.said("new-model")
            assert await here.said("new-model") == (
                "a new version has taken its place, but the version before could not be deleted:"
                " the disk is full"
            )
            assert here.ready() == ["a#2"]
            assert not (here.repository.incoming / "a.why.txt").exists()

    async def later() -> None:
        async with place(folder) as here:
            await here.asks()
            await here.said("new-model")  # what was not committed was put back, and comes again
            monkeypatch.setattr(Replacement, "roll_back", fails)
            here.put("a", seed=3, mark="broken")
            why = await here.said("refused-model")
            assert BROKEN in why
            assert why.endswith("; the version before could not be put back: the disk is full")

    run(act())
    run(later())


def test_what_comes_is_not_analysed_on_the_event_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(path: Path) -> Any:
        threads.append(threading.current_thread())
        return analyze(path)

    async def act() -> None:
        async with place(folder) as here:
            monkeypatch.setattr(served_models, "analyze", noted)
            here.put("b", seed=2)
            assert await here.said("new-model") == "it came into the repository"
            assert threads
            assert threading.main_thread() not in threads

    run(act())


def test_a_model_that_is_not_loaded_is_replaced_and_a_server_that_ends_puts_back(
    folder: Path,
) -> None:
    async def act() -> None:
        async with place(folder) as here:
            first = here.model()
            here.put("a", seed=2)
            await here.said("new-model")
            second = here.model()
            assert second != first
            await here.asks()
            here.put("a", seed=3, mark="stuck")
            while len(here.server.cluster.state.instances) < 2:
                await asyncio.sleep(0.01)
            assert here.model() not in (first, second), "it is in place, and loads"
        assert here.model() == second
        assert (here.repository.incoming / "a" / "stuck.json").exists()
        assert not list(here.repository.path.glob(".replacing/*"))

    run(act())
    assert still_there(folder) == []


def test_a_name_that_the_configuration_serves_from_elsewhere_is_refused(folder: Path) -> None:
    async def act() -> None:
        own = tiny.llama(folder / "own", seed=5)
        async with place(folder, models={"own": {"path": str(own)}}) as here:
            here.put("own", seed=2)
            why = await here.said("refused-model")
            assert why.startswith(f"`models` of the configuration serves 'own' already, from {own}")
            assert (here.repository.incoming / "own" / "config.json").is_file()
            assert (here.repository.incoming / "own.why.txt").read_text().strip() == why
            index = json.loads((here.repository.path / "index.json").read_text())
            assert [row["name"] for row in index] == ["a"]

    run(act())
