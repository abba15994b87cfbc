"""A new version takes a model's place as a whole, or all is as it was, whenever it ends."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelium.repository import ModelRepository, Replacement, RepositoryError, watch
from modelium.storage import durable
from tests.repository.test_repository import put, safetensors

OLD, NEW = 100, 200


def version(folder: Path, floats: int) -> Path:
    safetensors(put(folder) / "model.safetensors", floats)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    made = ModelRepository(tmp_path / "repository")
    made.add_model_from_incoming(version(made.incoming / "a", OLD), "org/a")
    return made


def floats(folder: Path) -> int:
    """Which version lies there; 0 if none does."""
    file = folder / "model.safetensors"
    return file.stat().st_size // 400 * 100 if file.exists() else 0


def there(repository: ModelRepository) -> tuple[int, int, int]:
    """The version in place, as the index has it, and what lies in `incoming/`."""
    [model] = repository.list_models()
    return floats(repository.folder("org/a")), model.weights_bytes // 4, floats(coming(repository))


def coming(repository: ModelRepository) -> Path:
    return repository.incoming / "org--a"


def left(repository: ModelRepository) -> list[str]:
    work = repository.path / ".replacing"
    return [path.name for path in work.iterdir()] if work.exists() else []


def test_a_version_is_replaced_for_good_or_not_at_all(repository: ModelRepository) -> None:
    folder = version(coming(repository), NEW)
    with repository.replacing(folder, "org/a", "ray") as model:
        assert there(repository) == (NEW, NEW, 0)
        assert model.runtime == "ray"
        assert there(ModelRepository(repository.path)) == (NEW, NEW, 0), "somebody is at it"
        with pytest.raises(RepositoryError, match="being replaced already"):
            repository.begin_replacing(version(repository.incoming / "b", 300), "org/a")
    assert there(repository) == (NEW, NEW, 0)
    third = version(coming(repository), 300)

    def fail() -> None:
        with repository.replacing(third, "org/a") as model:
            assert model.runtime == "ray", "as was asked for"
            assert there(repository) == (300, 300, 0)
            version(coming(repository), 400)  # somebody is quicker than the replacement
            raise RuntimeError("it does not load")

    with pytest.raises(RuntimeError, match="it does not load"):
        fail()
    assert there(repository) == (NEW, NEW, 400)
    assert floats(repository.incoming / ".org--a-1") == 300, "nothing is lost"
    assert left(repository) == []


def test_what_cannot_be_served_is_not_put_in_place(repository: ModelRepository) -> None:
    empty = coming(repository)
    empty.mkdir()
    with pytest.raises(RepositoryError, match="no model called 'org/b'"):
        repository.begin_replacing(empty, "org/b")
    with pytest.raises(RepositoryError, match="model"):
        repository.begin_replacing(empty, "org/a")
    with pytest.raises(RepositoryError, match="not a folder of model files"):
        repository.begin_replacing(empty / "none", "org/a")
    assert there(repository)[:2] == (OLD, OLD)
    assert empty.is_dir()
    assert left(repository) == []


def test_a_model_that_is_removed_meanwhile_does_not_come_back(repository: ModelRepository) -> None:
    replacement = repository.begin_replacing(version(coming(repository), NEW), "org/a")
    repository.remove_model("org/a")
    replacement.roll_back()
    assert repository.list_models() == []
    assert left(repository) == []
    assert not (repository.models / "org" / "a").exists()


def in_a_process_that_ends_at(step: int, do: Callable[[], None]) -> bool:
    """Run something that is killed just before its n-th change of the disk; True if it was."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    seen = 0

    def killed(change: Any) -> Any:
        def changed(*args: Any, **more: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == step:
                os._exit(9)
            return change(*args, **more)

        return changed

    for one, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
        setattr(one, name, killed(getattr(one, name)))
    try:
        do()
    except RuntimeError:
        os._exit(0)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("loads", [True, False])
def test_a_process_that_is_killed_at_any_step_leaves_one_version_whole(
    tmp_path: Path, repository: ModelRepository, loads: bool
) -> None:
    def reopen() -> None:
        ModelRepository(repository.path)

    shutil.copytree(repository.path, tmp_path / "before")
    ends, step, killed = set(), 0, True
    while killed:
        step += 1
        shutil.rmtree(repository.path)
        shutil.copytree(tmp_path / "before", repository.path)
        folder = version(coming(repository), NEW)

        def replace(folder: Path = folder) -> None:
            with repository.replacing(folder, "org/a"):
                if not loads:
                    raise RuntimeError("it does not load")

        killed = in_a_process_that_ends_at(step, replace)
        if killed:  # also the one that puts it back may be killed, at any step
            again, more = 1, True
            while more:
                more = in_a_process_that_ends_at(
                    again, lambda: ModelRepository(repository.path) and None
                )
                again += 1
        ends.add(there(ModelRepository(repository.path)))
        assert left(repository) == []
    assert step > 6
    assert ends == ({(OLD, OLD, NEW), (NEW, NEW, 0)} if loads else {(OLD, OLD, NEW)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"na', '{"model": {"name": "a"}}'])
def test_a_damaged_description_is_told_of_with_a_way_out(
    repository: ModelRepository, text: str
) -> None:
    begun = repository.begin_replacing(version(coming(repository), NEW), "org/a")
    work = repository.path / ".replacing" / "org%2Fa"
    (work / "before.json").write_text(text)
    for do in (begun.roll_back, lambda: ModelRepository(repository.path)):
        with pytest.raises(RepositoryError, match="not the description of a replacement") as told:
            do()
        assert f"then delete {work}" in str(told.value)
        begun._lock.close()  # as if its process had ended
    assert (floats(repository.folder("org/a")), floats(work / "old")) == (NEW, OLD), "all is there"
    shutil.rmtree(work)
    assert there(ModelRepository(repository.path)) == (NEW, NEW, 0)


def test_what_cannot_be_put_back_at_once_is_put_back_later(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> Callable[..., None]:
        def fail(*given: Any) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    folder = version(coming(repository), NEW)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRepository, "write", fails(errno.ENOSPC))
        patch.setattr(Replacement, "put_back", fails(errno.EIO))
        both = "No space left on device; it is put back at the next try or start: .*Input/output"
        with pytest.raises(RepositoryError, match=both):
            repository.begin_replacing(folder, "org/a")
    assert there(ModelRepository(repository.path)) == (OLD, OLD, NEW)
    assert left(repository) == []


def test_a_disk_that_cannot_sync_folders_still_replaces(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(durable.os, "fsync", files_only)
    repository.begin_replacing(version(coming(repository), NEW), "org/a").commit()
    assert there(repository) == (NEW, NEW, 0)


def test_a_watched_folder_is_given_away_once_and_explained(repository: ModelRepository) -> None:
    given: list[tuple[str, Callable[[str], None]]] = []
    told: list[tuple[str, str]] = []
    changed = threading.Condition()

    def note(to: list[Any], what: Any) -> None:
        with changed:
            to.append(what)
            changed.notify_all()

    def wait_for(what: list[Any], count: int) -> None:
        with changed:
            assert changed.wait_for(lambda: len(what) >= count, 300.0), (given, told)

    why = repository.incoming / "org--a.why.txt"
    with watch(
        repository,
        lambda name, model, why: note(told, (name, why)),
        still_s=0.1,
        replace=lambda folder, name, over: note(given, (name, over)),
        refuses=lambda name: "served from elsewhere" if name == "b" else "",
    ):
        folder = version(coming(repository), NEW)
        wait_for(given, 1)
        assert given[0][0] == "org/a"
        replacement = repository.begin_replacing(folder, "org/a")
        replacement.roll_back()
        given[0][1]("it does not load")
        assert why.read_text() == "it does not load\n"
        version(repository.incoming / "b", NEW)
        wait_for(told, 1)
        assert told == [("b", "served from elsewhere")]
        assert (repository.incoming / "b" / "model.safetensors").is_file()
        assert len(given) == 1, "it was looked at, and not given away again"
        safetensors(folder / "model.safetensors", 300)
        wait_for(given, 2)
        with repository.replacing(folder, "org/a"):
            pass
        given[1][1]("")
        assert not why.exists()
        version(coming(repository), 300)
        wait_for(given, 3)
    assert there(repository) == (300, 300, 300)
