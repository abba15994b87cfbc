"""Files of models that change in place: noticed, told, analysed anew, taken up."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.core import Load, Model, Wake
from modelium.errors import ModeliumError
from modelium.live.engines import model_files as files
from modelium.live.engines.backoff import Patience
from modelium.live.requests.interface import RefusedError
from modelium.live.settings import Served
from modelium.storage.fingerprint import FilesIdentity, fingerprint
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT, QUIET_S
from tests.live.house import House, engines_of, house
from tests.live.idle import A, Idle, loaded, operations

SMALL = model("a", 20)
CHANGED = "model.safetensors was changed"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are taken for whole after a moment."""
    monkeypatch.setattr(files, "STILL_S", 0.2)
    monkeypatch.setattr(files, "LOOK_S", 0.02)


def weights(folder: Path, floats: int, *, cut: int = 0) -> None:
    """Write weights in place; the last `cut` bytes are missing yet."""
    tensor = {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}
    header = json.dumps({"w": tensor}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(4 * floats)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(whole[: len(whole) - cut])


@asynccontextmanager
async def served(
    tmp_path: Path,
    one: Model = SMALL,
    *gpus: int,
    renew: Callable[[Served], Served] = lambda served: served,
    before: Callable[[], None] = lambda: None,
    **more: Any,
) -> AsyncIterator[tuple[House, Path]]:
    """A cluster that serves `one` from a folder; `renew` is what its analysis gives.

    `before` happens before each analysis.
    """
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights(folder, 100)
    first: list[Served] = []
    policy = more.pop("policy", Idle())

    def analysed(name: str) -> Served:
        before()
        files = fingerprint(folder)
        return replace(renew(first[0]), files=files)

    more["renew"] = analysed
    async with house(tmp_path, [one], *gpus, policy=policy, **more) as here:
        roster = here.cluster.registry
        first.append(replace(here.cluster.served["a"], path=folder, files=fingerprint(folder)))
        roster.put(first[0])
        yield here, folder


def row(here: House) -> dict[str, Any]:
    [told] = operations(here).models()
    return told


def run(work: Any) -> None:
    async def timed() -> None:
        async with asyncio.timeout(QUIET_S):
            await work()

    asyncio.run(timed())


def test_a_change_in_place_is_told_and_the_next_load_knows_it(tmp_path: Path) -> None:
    larger = replace(SMALL, weights_bytes=30 << 30)

    async def act() -> None:
        async with served(tmp_path, renew=lambda old: replace(old, model=larger)) as (here, folder):
            cluster, operator = here.cluster, operations(here)
            name = await loaded(here)
            cluster.learnt.took("a", "disk", 9.0)
            assert row(here)["files_changed"] == ""
            (folder / "engine.log").write_text("what it writes itself is no change")
            weights(folder, 200)
            await cluster.files.look()
            told = row(here)
            assert told["files_changed"] == CHANGED
            assert told["instances"][0]["files_changed"] == CHANGED
            assert here.said("files") == [
                {"model": "a", "why": f"its files have changed: {CHANGED}"}
            ]
            assert cluster.state.models["a"] == SMALL, "not before they are settled"
            await cluster.files.settle("a")
            assert cluster.state.models["a"] == larger
            assert not cluster.learnt.durations
            assert row(here)["files_changed"] == CHANGED, "what runs is the old one"
            assert list(cluster.state.instances) == [name]
            await operator.unload("a")
            await loaded(here)
            assert (row(here)["files_changed"], row(here)["error"]) == ("", "")
            [copy] = cluster.state.instances.values()
            assert copy.bytes_per_gpu == larger.bytes_per_gpu()

    run(act)


@pytest.mark.parametrize("pinned", [False, True])
def test_an_update_loads_the_new_copy_beside_the_old_one(tmp_path: Path, pinned: bool) -> None:
    async def act() -> None:
        one = replace(SMALL, pinned=pinned)
        async with served(tmp_path, one, held=True) as (here, folder):
            here.go.set()
            old = await loaded(here)
            operator = operations(here)
            assert (await operator.update("a"))["updated"] == ["a is up to date"]
            weights(folder, 200)
            here.go.clear()
            updating = asyncio.create_task(operator.update("a"))
            await here.until(lambda: sorted(here.phases("a")) == ["loading", "ready"])
            assert await here.ask("a"), "the old one serves"
            with pytest.raises(RefusedError, match="being updated already") as refused:
                await operator.update("a")
            assert refused.value.status == 409
            here.go.set()
            told = await updating
            assert told["updated"] == [f"{old} was replaced on n0g0 without a gap"]
            await here.until(lambda: old not in here.cluster.state.instances)
            assert (row(here)["status"], row(here)["files_changed"]) == ("ready", "")
            assert await here.ask("a")
            kinds = [(one["kind"], one["reason"]) for one in here.said("decision")][1:]
            assert kinds == [("move", f"update: {CHANGED}"), ("unload", "a#2 takes its place")]

    run(act)
    assert engines_of(tmp_path) == []


@pytest.mark.parametrize(
    ("gpus", "how"),
    [
        (2, "was replaced on n0g1 without a gap"),
        (1, "went first, since no GPU has room for a second copy"),
    ],
)
def test_an_update_goes_to_another_gpu_or_else_drains_first(
    tmp_path: Path, gpus: int, how: str
) -> None:
    async def act() -> None:
        async with served(tmp_path, A, gpus) as (here, folder):
            old = await loaded(here)
            weights(folder, 200)
            told = await operations(here).update("a")
            assert told["updated"] == [f"{old} {how}"]
            await here.until(lambda: old not in here.cluster.state.instances)
            assert (row(here)["status"], row(here)["files_changed"]) == ("ready", "")
            assert await here.ask("a")

    run(act)


def test_what_loads_while_its_settings_change_is_begun_again(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path, held=True) as (here, _):
            here.cluster.start(Load("a", ("n0g0",), "the test"))
            await here.until(lambda: here.said("progress"))
            operations(here).replace("a", "its settings changed")
            here.go.set()
            await here.until(lambda: here.phases("a") == ["ready"])
            ends = [(one["kind"], one["error"]) for one in here.said("done")]
            assert ends[0] == ("load", "cancelled: its settings changed")
            [copy] = here.cluster.state.instances.values()
            assert copy.id == "a#2"
            assert here.cluster.failures.of("a") is None

    run(act)
    assert engines_of(tmp_path) == []


def test_a_new_version_that_does_not_load_leaves_the_old_one(tmp_path: Path) -> None:
    broken = {**INSTANT, "fault": "fail_start"}

    async def act() -> None:
        few = Patience(tries=1)
        async with served(
            tmp_path, renew=lambda old: replace(old, settings=broken), faults=True, patience=few
        ) as (here, folder):
            old = await loaded(here)
            weights(folder, 200)
            with pytest.raises(RefusedError, match=f"{old} serves on: its replacement") as why:
                await operations(here).update("a")
            assert why.value.status == 503
            assert list(here.cluster.state.instances) == [old]
            assert await here.ask("a")
            assert row(here)["files_changed"] == CHANGED

    run(act)


def test_a_new_version_that_fits_nowhere_leaves_the_old_one(tmp_path: Path) -> None:
    huge = replace(SMALL, weights_bytes=200 << 30)

    async def act() -> None:
        async with served(tmp_path, renew=lambda old: replace(old, model=huge)) as (here, folder):
            old = await loaded(here)
            weights(folder, 200)
            with pytest.raises(RefusedError, match=f"{old} serves on: .* can never run here"):
                await operations(here).update("a")
            assert here.phases("a") == ["ready"]
            assert list(here.cluster.state.instances) == [old]

    run(act)


def test_files_that_cannot_be_served_are_told(tmp_path: Path) -> None:
    def broken(old: Served) -> Served:
        raise ModeliumError("config.json: no model")

    async def act() -> None:
        async with served(tmp_path, renew=broken) as (here, folder):
            await loaded(here)
            (folder / "config.json").write_text("{]")
            with pytest.raises(RefusedError, match=r"not updated: a: config\.json: no model"):
                await operations(here).update("a")
            assert (row(here)["files_error"], row(here)["error"]) == ("config.json: no model", "")
            assert await here.ask("a")

    run(act)


def test_sleepers_are_not_woken_with_old_weights(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            name = await loaded(here)
            await operations(here).sleep("a")
            weights(folder, 200)
            here.cluster.start(Wake(name, "the test"))  # before anybody has looked
            await here.until(lambda: not here.cluster.state.instances)
            why = f"cancelled: its files changed since it was loaded: {CHANGED}"
            assert here.said("done")[-1]["error"] == why
            name = await loaded(here)
            await operations(here).sleep("a")
            weights(folder, 300)
            await here.cluster.files.look()
            await here.until(lambda: not here.cluster.state.instances)
            assert here.said("decision")[-1]["kind"] == "unload"

    run(act)
    assert engines_of(tmp_path) == []


def test_a_load_waits_until_files_are_whole(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            weights(folder, 200, cut=100)
            here.cluster.start(Load("a", ("n0g0",), "the test"))
            await asyncio.sleep(1.0)  # five times as long as files have to be still
            assert here.phases("a") == ["loading"]
            assert engines_of(tmp_path) == []
            weights(folder, 200)
            await here.until(lambda: here.phases("a") == ["ready"])
            assert row(here)["files_changed"] == ""

    run(act)


def test_a_load_whose_weights_change_under_it_is_begun_again(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path, policy="lru", held=True) as (here, folder):
            asking = asyncio.create_task(here.ask("a"))
            await here.until(lambda: here.said("progress"))
            weights(folder, 200)
            here.go.set()
            assert await asking
            errors = [one["error"] for one in here.said("done") if one["kind"] == "load"]
            assert errors == ["cancelled: model.safetensors was changed while it was loaded", ""]
            assert here.cluster.failures.of("a") is None
            assert row(here)["files_changed"] == ""

    run(act)
    assert engines_of(tmp_path) == []


def test_a_file_that_is_replaced_by_one_of_the_same_time_is_another(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            await loaded(here)
            file = folder / "model.safetensors"
            stat, other = file.stat(), tmp_path / "other"
            other.write_bytes(file.read_bytes())
            os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            other.rename(file)
            await here.cluster.files.look()
            assert row(here)["files_changed"] == "model.safetensors was replaced"

    run(act)


def test_what_is_noted_meanwhile_is_not_taken_back_by_an_older_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> FilesIdentity:
        """The first look is taken before the files change, and told after."""
        found = fingerprint(path)
        if not looked.is_set():
            looked.set()
            go_on.wait()
        return found

    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            monkeypatch.setattr(files, "fingerprint", slow)
            looking = asyncio.create_task(here.cluster.files.look())
            await here.until(looked.is_set)
            weights(folder, 200)
            name = await loaded(here)
            go_on.set()
            await looking
            assert here.cluster.files.outdated(here.cluster.state.copy(name)) == ""
            assert row(here)["files_changed"] == ""

    run(act)


def test_an_analysis_that_takes_long_holds_up_no_other_models_news(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(old: Served) -> Served:
        began.set()
        go_on.wait()
        return old

    async def act() -> None:
        async with served(tmp_path, renew=slow) as (here, folder):
            cluster, other = here.cluster, tmp_path / "other"
            other.mkdir()
            weights(other, 100)
            one = replace(cluster.served["a"], model=replace(SMALL, name="b"), path=other)
            cluster.registry.put(replace(one, files=fingerprint(other)))
            weights(folder, 200)
            await cluster.files.look()
            await asyncio.sleep(0.3)
            weights(other, 200)
            looking = asyncio.create_task(cluster.files.look())
            await here.until(began.is_set)
            assert {said["model"] for said in here.said("files")} == {"a", "b"}
            go_on.set()
            await looking

    run(act)


def test_a_link_to_itself_is_no_file_and_troubles_nobody(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            await loaded(here)
            (folder / "loop").symlink_to(folder / "loop")
            (folder / "loop.json").symlink_to(folder / "loop.json")
            await here.cluster.files.look()
            assert row(here)["files_changed"] == ""
            weights(folder, 200)
            await here.cluster.files.look()
            assert row(here)["files_changed"] == CHANGED
            await here.cluster.files.settle("a")
            assert row(here)["files_error"] == ""

    run(act)


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "config.json"), RuntimeError("a mistake of its own")],
    ids=lambda error: type(error).__name__,
)
def test_an_analysis_that_breaks_is_told_and_troubles_no_other(
    tmp_path: Path, error: Exception
) -> None:
    def broken(old: Served) -> Served:
        raise error

    async def act() -> None:
        async with served(tmp_path, renew=broken) as (here, folder):
            await loaded(here)
            weights(folder, 200)
            await here.cluster.files.look()
            await asyncio.sleep(0.3)
            await here.cluster.files.look()
            assert str(error) in row(here)["files_error"]

    run(act)


def test_an_update_of_a_model_that_is_removed_meanwhile_says_so(tmp_path: Path) -> None:
    async def act() -> None:
        async with served(tmp_path) as (here, folder):
            await loaded(here)
            operator = operations(here)
            weights(folder, 200, cut=100)
            updating = asyncio.create_task(operator.update("a"))
            await here.until(lambda: row(here)["files_changed"])
            await operator.remove("a")
            with pytest.raises(RefusedError, match="no model called 'a'") as gone:
                await updating
            assert gone.value.status == 404

    run(act)


def test_settings_that_are_taken_up_meanwhile_are_not_undone_by_an_analysis(
    tmp_path: Path,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(old: Served) -> Served:
        began.set()
        go_on.wait()
        return old

    async def act() -> None:
        async with served(tmp_path, renew=slow) as (here, folder):
            cluster = here.cluster
            weights(folder, 200)
            settling = asyncio.create_task(cluster.files.settle("a"))
            await here.until(began.is_set)
            later = replace(cluster.served["a"], settings={**INSTANT, "speed": 2.0})
            cluster.registry.put(replace(later, files=fingerprint(folder)))
            go_on.set()
            await settling
            assert cluster.served["a"] == later

    run(act)


def test_files_that_change_before_their_analysis_are_analysed_once_more(tmp_path: Path) -> None:
    sizes: list[int] = []

    def change() -> None:
        if not sizes:
            weights(tmp_path / "model", 300)

    def counted(old: Served) -> Served:
        sizes.append((tmp_path / "model" / "model.safetensors").stat().st_size)
        return old

    async def act() -> None:
        async with served(tmp_path, renew=counted, before=change) as (here, folder):
            weights(folder, 200)
            await here.cluster.files.settle("a")
            assert len(sizes) == 2
            assert sizes[0] == sizes[1]
            assert here.said("files")[-1]["why"] == "its changed files are analysed anew"
            await loaded(here)
            assert row(here)["files_changed"] == ""

    run(act)
