"""`ModelRepository`: folders of models with an index.

repository = ModelRepository("/srv/models")
repository.add_model_from_incoming("/srv/models/incoming/llama-8b", "llama-8b")
repository.get_model("llama-8b").runtime        # "vllm"

incoming/    put folders here; each becomes a model of its name
models/      what is served
index.json   what is known of each
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelium.analyze import ModelFiles
from modelium.errors import did_you_mean
from modelium.repository.checking import RepositoryError as RepositoryError
from modelium.repository.checking import check_folder, check_name
from modelium.repository.replacement import Replacement, begin, recover
from modelium.repository.stored import ASKED_FOR
from modelium.repository.stored import StoredModel as StoredModel
from modelium.storage.durable import write_durably
from modelium.storage.unfinished import files_in
from modelium.units import format_bytes


class ModelRepository:
    """One repository. Safe for several processes: the index is replaced whole, under a lock."""

    def __init__(self, path: str | Path, *, allow_pickle: bool = False) -> None:
        """Make the folders where they are missing; put back what a replacement left half done.

        Raises RepositoryError.
        """
        self.path = Path(path)
        self.incoming, self.models = self.path / "incoming", self.path / "models"
        self.allow_pickle = allow_pickle
        try:
            for folder in (self.incoming, self.models):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RepositoryError(f"{self.path}: no repository: {error.strerror}") from None
        recover(self)

    def add_model_from_incoming(
        self, path: str | Path, name: str = "", runtime: str = ""
    ) -> StoredModel:
        """Check a folder, analyse it and move it in as `name` (its own, if not given).

        `runtime` overrides the choice. Raises RepositoryError, or OSError if the index cannot be
        written, and leaves everything as it was.
        """
        folder, name = Path(path), check_name(name or Path(path).name)
        if not folder.is_dir() or folder.is_symlink():
            raise RepositoryError(f"{folder} is not a folder of model files")
        with self.locked() as index:
            if name in index:
                raise RepositoryError(
                    f"there is a model called {name!r} already; delete it first, or replace it"
                )
            found = check_folder(folder, allow_pickle=self.allow_pickle)
            target = self.models / name
            if target.exists():
                raise RepositoryError(f"{target} exists but is not in the index; move it away")
            self.move(folder, target)
            index[name] = self.entry_for(name, target, found, runtime)
            try:
                self.write(index)
            except OSError:
                self.move(target, folder)
                raise
            return index[name]

    def entry_for(self, name: str, target: Path, found: ModelFiles, runtime: str) -> StoredModel:
        """What the index is to say of a model whose files were analysed."""
        return StoredModel(
            name,
            str(target.relative_to(self.path)),
            found.architecture,
            found.format,
            found.parameters,
            found.weights_bytes,
            runtime or found.runtime,
            ASKED_FOR if runtime else found.runtime_reason,
            time.time(),
        )

    def begin_replacing(self, path: str | Path, name: str, runtime: str = "") -> Replacement:
        """Put a folder in the place of a model's files, until that is committed or rolled back.

        `runtime` overrides the choice. Raises RepositoryError and leaves everything as it was.
        """
        folder = Path(path)
        if not folder.is_dir() or folder.is_symlink():
            raise RepositoryError(f"{folder} is not a folder of model files")
        return begin(self, folder, name, runtime)

    @contextmanager
    def replacing(self, path: str | Path, name: str, runtime: str = "") -> Iterator[StoredModel]:
        """Put a folder in the place of a model's files, for good unless the body raises."""
        replacement = self.begin_replacing(path, name, runtime)
        try:
            yield replacement.stored
        except BaseException:
            replacement.roll_back()
            raise
        replacement.commit()

    def renew_model(self, name: str) -> StoredModel:
        """Analyse a model anew whose files have changed in place. Raises RepositoryError."""
        with self.locked() as index:
            if name not in index:
                raise RepositoryError(f"no model called {name!r}.{did_you_mean(name, index)}")
            folder = self.path / index[name].path
            found = check_folder(folder, allow_pickle=self.allow_pickle)
            index[name] = self.entry_for(name, folder, found, index[name].runtime_asked)
            self.write(index)
            return index[name]

    def refuses(self, name: str, path: Path | None) -> str:
        """Why a model that the configuration serves from `path` cannot be in the repository, or "".

        None: it is served without files. What is served from elsewhere would never be served from
        the repository.
        """
        place = (self.models / name).resolve()
        if path is not None and path.resolve() == place:
            return ""
        where = f"from {path.resolve()}" if path is not None else "without files"
        return (
            f"`models` of the configuration serves {name!r} already, {where}: say"
            f" `path: models/{name}` there, take it out, or give these files another name"
        )

    def get_model(self, name: str) -> StoredModel:
        """What is known of a model. Raises RepositoryError."""
        index = self._read()
        if name not in index:
            raise RepositoryError(f"no model called {name!r}.{did_you_mean(name, index)}")
        return index[name]

    def folder(self, name: str) -> Path:
        """Where a model's files are. Raises RepositoryError."""
        return self.path / self.get_model(name).path

    def list_models(self) -> list[StoredModel]:
        """All models, by name."""
        return sorted(self._read().values(), key=lambda model: model.name)

    def remove_model(self, name: str) -> None:
        """Delete a model's files; whoever serves it unloads it first. Raises RepositoryError."""
        folder = self.folder(name)
        with self.locked() as index:
            index.pop(name, None)
            self.write(index)
        # First out of the way, then deleted: half a model is never found under its name.
        grave = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.path))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave / "files")
        shutil.rmtree(grave, ignore_errors=True)

    def get_stats(self) -> dict[str, Any]:
        """How many models there are, by runtime, and what they take."""
        models = self.list_models()
        by_runtime: dict[str, int] = {}
        for model in models:
            by_runtime[model.runtime] = by_runtime.get(model.runtime, 0) + 1
        return {
            "models": len(models),
            "weights_bytes": sum(model.weights_bytes for model in models),
            "by_runtime": by_runtime,
            "incoming": len([one for one in self.incoming.iterdir() if _is_model(one)]),
            "free_bytes": shutil.disk_usage(self.path).free,
        }

    def move(self, folder: Path, target: Path) -> None:
        """Move at once on one file system; else copy under another name, then rename."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
            return
        except OSError as error:
            if error.errno != 18:  # EXDEV: another file system
                raise RepositoryError(f"{folder} cannot be moved: {error.strerror}") from None
        size = sum(file.stat().st_size for file in files_in(folder) if file.is_file())
        free = shutil.disk_usage(self.path).free
        if size > free:
            raise RepositoryError(
                f"{folder} has {format_bytes(size)}, {format_bytes(free)} are free in {self.path}"
            )
        part = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.path))
        try:
            shutil.copytree(folder, part / "files", symlinks=True)
            (part / "files").rename(target)
        except OSError as error:
            raise RepositoryError(f"{folder} cannot be copied: {error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    # The index

    @property
    def _index(self) -> Path:
        return self.path / "index.json"

    def _read(self) -> dict[str, StoredModel]:
        try:
            rows = json.loads(self._index.read_text(encoding="utf-8"))
            return {row["name"]: StoredModel(**row) for row in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RepositoryError(f"{self._index}: not an index of models: {error}") from None

    @contextmanager
    def locked(self) -> Iterator[dict[str, StoredModel]]:
        """The index, which nobody else changes meanwhile; `write` replaces it."""
        with (self.path / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()

    def write(self, index: Mapping[str, StoredModel]) -> None:
        """Replace the index, whose lock is held. Raises OSError, and it is as it was."""
        rows = [asdict(model) for model in index.values()]
        write_durably(self._index, json.dumps(rows, indent=2) + "\n")


def _is_model(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")
