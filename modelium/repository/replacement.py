"""Another version of a model takes the place of the one that is there, or all is put back.

.replacing/NAME/lock          held by the process that replaces it, for as long as it lives
.replacing/NAME/before.json   what the index said, and where the new version came from
.replacing/NAME/new, old      the two folders, while they are not in `models/`

The new version is in `models/NAME` from the beginning on, since engines are loaded from there. The
old one is kept until `commit`. Of a process that ends before that, whoever opens the repository
next puts all back.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from modelium.errors import ModeliumError, did_you_mean
from modelium.repository.checking import RepositoryError, check_folder
from modelium.repository.stored import StoredModel
from modelium.storage.durable import write_durably

if TYPE_CHECKING:
    from modelium.repository.repository import ModelRepository

WORK = ".replacing"
BEFORE = "before.json"
Index = dict[str, StoredModel]


class Replacement:
    """A version that is in place, and can still be taken back."""

    def __init__(self, repository: ModelRepository, name: str, work: Path, lock: IO[str]) -> None:
        """`lock` is that of the `work` folder, and held."""
        self._repository, self.name, self._work, self._lock = repository, name, work, lock

    def commit(self) -> None:
        """The old version goes. Raises RepositoryError."""
        self._end()

    @property
    def stored(self) -> StoredModel:
        """What the index says of the new version. Raises RepositoryError."""
        return self._repository.get_model(self.name)

    def roll_back(self) -> None:
        """The old version is put back, the new one to where it came from. Raises RepositoryError.

        If somebody has put another folder there meanwhile, it gets a hidden name beside it. If the
        model was removed meanwhile, nothing comes back.
        """
        try:
            with self._repository.locked() as index:
                self.put_back(index)
                self._repository.write(index)
        except BaseException:
            self._lock.close()  # it is tried again before the next replacement, or start
            raise
        self._end()

    def swap(self, index: Index, folder: Path, runtime: str) -> None:
        """Put the new version in place. What fails half way is to be put back."""
        repository, name = self._repository, self.name
        found = check_folder(folder, allow_pickle=repository.allow_pickle)
        before = {"model": asdict(index[name]), "source": str(folder.absolute())}
        write_durably(self._work / BEFORE, json.dumps(before))
        target = repository.path / index[name].path
        repository.move(folder, self._work / "new")
        target.rename(self._work / "old")
        (self._work / "new").rename(target)
        asked = runtime or index[name].runtime_asked
        index[name] = repository.entry_for(name, target, found, asked)

    def put_back(self, index: Index) -> None:
        """Undo what `swap` did, however far it came; may be done again where it ended half way.

        Raises RepositoryError, OSError.
        """
        try:
            before = json.loads((self._work / BEFORE).read_text(encoding="utf-8"))
            model, source = StoredModel(**before["model"]), Path(before["source"])
        except FileNotFoundError:
            return  # not begun, or committed
        except (ValueError, TypeError, KeyError) as error:
            raise RepositoryError(
                f"{self._work / BEFORE}: not the description of a replacement: {error}. If `old` is"
                f" beside it, it is the version before of {unquote(self._work.name)!r}: put it in"
                f" the place of that model's folder if you want it, then delete {self._work}"
            ) from None
        if model.name not in index:
            return
        target, old = self._repository.path / model.path, self._work / "old"
        new = self._work / "new"
        if not new.exists() and old.exists():
            new = target
        if new.exists():
            self._repository.move(new, _free(source))
        if old.exists():
            old.rename(target)
        index[model.name] = model

    def _end(self) -> None:
        try:
            with self._repository.locked():
                (self._work / BEFORE).unlink(missing_ok=True)  # from here on it is for good
                shutil.rmtree(self._work, ignore_errors=True)
        except OSError as error:
            raise RepositoryError(f"{self._work}: {error.strerror}") from None
        finally:
            self._lock.close()


def begin(repository: ModelRepository, folder: Path, name: str, runtime: str) -> Replacement:
    """Put a folder in the place of a model's. Raises RepositoryError, and all is as it was."""
    recover(repository)
    with repository.locked() as index:
        if name not in index:
            raise RepositoryError(f"no model called {name!r}.{did_you_mean(name, index)}")
        work = repository.path / WORK / quote(name, safe="")
        work.mkdir(parents=True, exist_ok=True)
        if (lock := _lock(work)) is None:
            raise RepositoryError(f"{name!r} is being replaced already; wait until it is")
        made = Replacement(repository, name, work, lock)
        try:
            made.swap(index, folder, runtime)
            repository.write(index)
        except BaseException as error:
            try:
                made.put_back(index)
                shutil.rmtree(work, ignore_errors=True)
            except (ModeliumError, OSError) as second:
                why = f"{error}; it is put back at the next try or start: {second}"
                raise RepositoryError(f"{name!r} cannot be replaced: {why}") from None
            finally:
                lock.close()
            if isinstance(error, OSError):
                raise RepositoryError(f"{name!r} cannot be replaced: {error}") from None
            raise
    return made


def recover(repository: ModelRepository) -> None:
    """Put back what processes left that have ended. Raises RepositoryError."""
    for work in sorted((repository.path / WORK).glob("*")):
        if (lock := _lock(work)) is None:
            continue
        lock.close()  # first the index, then this one, as everywhere
        with repository.locked() as index:
            if (lock := _lock(work)) is None:
                continue
            left = Replacement(repository, work.name, work, lock)
            try:
                left.put_back(index)
                repository.write(index)
            except (ModeliumError, OSError) as error:
                lock.close()
                raise RepositoryError(f"{work} cannot be put back: {error}") from None
        left.commit()


def _lock(work: Path) -> IO[str] | None:
    """The lock of a work folder; None if somebody holds it, or the folder is gone."""
    try:
        lock = (work / "lock").open("a")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _free(source: Path) -> Path:
    """`source`, or if there is something already, a hidden name beside it."""
    number, free = 0, source
    while free.exists():
        number += 1
        free = source.with_name(f".{source.name}-{number}")
    return free
