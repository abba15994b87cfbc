"""Watching `incoming/`: a folder is taken in once it is whole and has not changed for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from modelium.repository.checking import RepositoryError, listing
from modelium.repository.repository import ModelRepository
from modelium.repository.stored import StoredModel
from modelium.storage.unfinished import LOOK_S, STILL_S, unfinished

log = logging.getLogger(__name__)

WHY = ".why.txt"
MISSED_S = 2.0
"""Folders are looked at this often even if nothing was told: what changes within them is not, and
some file systems tell nothing."""

Told = Callable[[str, StoredModel | None, str], None]
"""Hears (name, the model or None, why it was refused), from the watcher's thread."""


Replace = Callable[[Path, str, Callable[[str], None]], None]
"""Begins to replace the model of a name by a folder; tells later "" or why it is not replaced."""


def _anything(name: str) -> str:
    return ""


@contextmanager
def watch(
    repository: ModelRepository,
    told: Told,
    still_s: float | None = None,
    *,
    replace: Replace | None = None,
    refuses: Callable[[str], str] = _anything,
) -> Iterator[None]:
    """Take in what is put into `incoming/`, until the body ends.

    What is refused stays where it is, with the reason beside it in `NAME.why.txt`; it is looked at
    again when it changes, or when its name becomes free. Whatever has the name of a model in the
    repository is given to `replace`, if there is one, or refused. `refuses` says why the repository
    may have no model of a name, or "". Both are asked in the watcher's thread. Folders are whole
    when they have not changed for `still_s` (None: STILL_S).
    """
    watcher = _Watcher(repository, told, STILL_S if still_s is None else still_s, replace, refuses)
    observer = Observer()
    observer.schedule(watcher, str(repository.incoming))
    observer.start()
    thread = threading.Thread(target=watcher.run, name="incoming", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.over.set()
        watcher.on_any_event(FileSystemEvent(""))
        observer.stop()
        observer.join()
        thread.join()


class _Watcher(FileSystemEventHandler):
    def __init__(
        self,
        repository: ModelRepository,
        told: Told,
        still_s: float,
        replace: Replace | None,
        refuses: Callable[[str], str],
    ) -> None:
        self.over = threading.Event()
        self._replace, self._refuses = replace, refuses
        self._repository, self._told, self._still_s = repository, told, still_s
        self._stirred = threading.Event()
        self._seen: dict[Path, tuple[object, float]] = {}
        """By folder: how it looked, and since when it has looked so."""
        self._refused: dict[Path, object] = {}
        """How folders looked that were refused, or given away to replace a model."""
        self._failing: dict[Path, str] = {}
        """Why folders could not be looked at or taken in: the file system's errors."""
        self._why = ""
        """Why `incoming/` could not be listed."""

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Something in `incoming/` changed."""
        self._stirred.set()

    def run(self) -> None:
        """Look whenever something changed, and for as long as something is not still."""
        while not self.over.is_set():
            self._stirred.clear()
            try:
                pending = self._look()
            except OSError as error:  # `incoming/` itself cannot be listed
                if str(error) != self._why:
                    log.warning("new models cannot be seen: %s", error)
                self._why, pending = str(error), False
            else:
                self._why = ""
            if pending:
                self.over.wait(LOOK_S)
            else:
                self._stirred.wait(MISSED_S)

    def _look(self) -> bool:
        """Take in what is whole; True if something has yet to become still."""
        pending, names = False, self._names()
        for path in sorted(self._repository.incoming.iterdir()):
            if path.name.startswith(".") or path.name.endswith(WHY):
                continue
            try:
                pending |= self._consider(path, taken=_name(path) in names)
            except FileNotFoundError:  # taken away, or moved, while it was looked at
                pending = True
            except OSError as error:  # it is looked at again, as all are
                self._failed(path, error)
            else:
                self._failing.pop(path, None)
        return pending

    def _failed(self, folder: Path, error: OSError) -> None:
        """Tell once why a folder cannot be looked at or taken in now."""
        why = str(error)
        if self._failing.get(folder) != why:
            self._failing[folder] = why
            self._told(_name(folder), None, why)

    def _names(self) -> set[str]:
        try:
            return {model.name for model in self._repository.list_models()}
        except RepositoryError:  # told when something is to be added
            return set()

    def _consider(self, folder: Path, *, taken: bool) -> bool:
        plain = not folder.is_dir() or folder.is_symlink()
        files, now_s = () if plain else listing(folder), time.monotonic()
        forbidden = self._refuses(_name(folder))
        looks = (plain, taken, forbidden, files)
        if self._refused.get(folder) == looks:
            return False
        before, since_s = self._seen.get(folder, (None, now_s))
        if before != looks:
            self._seen[folder] = (looks, now_s)
            return True
        if now_s - since_s < self._still_s:
            return True
        if plain or (files and not unfinished(folder)):
            if taken and not forbidden and self._replace is not None:
                self._give_away(folder, looks, self._replace)
            else:
                self._take(folder, looks, forbidden)
            return False
        return bool(files)

    def _take(self, folder: Path, looks: object, forbidden: str) -> None:
        name = _name(folder)
        try:
            if forbidden:
                raise RepositoryError(forbidden)
            model = self._repository.add_model_from_incoming(folder, name)
        except RepositoryError as error:
            self._refused[folder] = looks
            _explain(folder, str(error))
            self._told(name, None, str(error))
            return
        self._seen.pop(folder, None)
        self._refused.pop(folder, None)
        _explain(folder, "")
        self._told(name, model, "")

    def _give_away(self, folder: Path, looks: object, replace: Replace) -> None:
        self._seen.pop(folder, None)
        self._refused[folder] = looks
        replace(folder, _name(folder), partial(self._replaced, folder, looks))

    def _replaced(self, folder: Path, looks: object, why: str) -> None:
        """It was replaced, or was not, and the folder is back; told by another thread."""
        if not why or self._refused.get(folder) != looks:  # another one is there by now
            self._refused.pop(folder, None)
        _explain(folder, why)
        self._stirred.set()


def _explain(folder: Path, why: str) -> None:
    """Write beside a folder why it was refused; nothing if it was not.

    Where that cannot be written it is logged: whoever waits for the reason is told it anyway.
    """
    file = folder.with_name(folder.name + WHY)
    try:
        if why:
            file.write_text(f"{why}\n", encoding="utf-8")
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: %s", file, error.strerror or error)


def _name(folder: Path) -> str:
    """Of the model; a name's slash cannot stand in a folder's."""
    return folder.name.replace("--", "/", 1)
