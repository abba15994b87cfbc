"""Models that are put into the repository's `incoming/`: served from when they are whole.

One whose name is in the repository already is a new version: it is put in the other's place, and
copies are replaced as by `modelium update`. If it cannot be loaded, the version before is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelium.core import AWAKE
from modelium.errors import ModeliumError
from modelium.live.admin import AdminService
from modelium.live.cluster import LiveCluster
from modelium.repository import ModelRepository, Replacement, StoredModel, watch
from modelium.serving.served_models import ServedModels

FAILURES = (ModeliumError, OSError)


@contextmanager
def incoming(cluster: LiveCluster, stock: ServedModels, operations: AdminService) -> Iterator[None]:
    """Serve what is put into `incoming/`, until the body ends."""
    if stock.repository is None:
        yield
        return
    arrivals = _Incoming(cluster, stock, operations, stock.repository)
    with watch(stock.repository, arrivals.told, replace=arrivals.replace, refuses=arrivals.refuses):
        yield


class _Incoming:
    def __init__(
        self,
        cluster: LiveCluster,
        stock: ServedModels,
        operations: AdminService,
        repository: ModelRepository,
    ) -> None:
        self._cluster, self._stock, self._operations = cluster, stock, operations
        self._repository = repository

    # In the watcher's thread

    def told(self, name: str, stored: StoredModel | None, why: str) -> None:
        """A folder was taken in, or refused."""
        self._begin(lambda: self._come(name, stored, why))

    def refuses(self, name: str) -> str:
        """Why a folder of this name would never be served; "" if it would."""
        served = self._cluster.served.get(name)
        return "" if served is None else self._repository.refuses(name, served.path)

    def replace(self, folder: Path, name: str, over: Callable[[str], None]) -> None:
        """A new version of a model has come; `over` is told when it has its place, or why not."""
        self._begin(lambda: self._replace(folder, name, over))

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop, cluster = self._cluster.loop, self._cluster
        loop.call_soon_threadsafe(lambda: cluster.spawn(work()))

    # On the loop

    async def _come(self, name: str, stored: StoredModel | None, why: str) -> None:
        cluster = self._cluster
        try:
            if stored is not None and name not in cluster.state.models:
                served = await cluster.call(self._stock.add, stored)
                if name not in cluster.state.models:  # a reload may have been quicker
                    cluster.registry.put(served)
        except FAILURES as error:
            why = str(error)
        self._tell(name, why, "it came into the repository")

    async def _replace(self, folder: Path, name: str, over: Callable[[str], None]) -> None:
        cluster, was_up = self._cluster, self._is_up(name)
        taken = "a new version has taken its place"
        try:
            version = await cluster.call(self._repository.begin_replacing, folder, name)
        except FAILURES as error:
            why = str(error)
        else:
            why = await self._serve(name, version)
            if why:
                why += await self._put_back(name, version, was_up)
            else:
                taken += await self._commit(version)
        await cluster.call(over, why)
        self._tell(name, why and f"not replaced: {why}", taken)

    async def _commit(self, version: Replacement) -> str:
        """The version before goes; what to add to the news if it does not."""
        try:
            await self._cluster.call(version.commit)
        except FAILURES as error:
            return f", but the version before could not be deleted: {error}"
        return ""

    async def _put_back(self, name: str, version: Replacement, was_up: bool) -> str:
        """The version before is served again; what to add to the news if it is not."""
        try:
            await self._cluster.call(version.roll_back)
        except FAILURES as error:
            return f"; the version before could not be put back: {error}"
        try:
            await self._restore(name, was_up)
        except FAILURES as error:
            return f"; the version before is put back, but not loaded: {error}"
        return ""

    async def _serve(self, name: str, version: Replacement) -> str:
        """Have copies replaced by those of the new version; why that cannot be."""
        cluster = self._cluster
        try:
            if name in cluster.state.models:
                await self._operations.update(name, wait=True)
            else:
                cluster.registry.put(await cluster.call(self._stock.add, version.stored))
        except Exception as error:  # whatever it is: the version before is to be put back
            return str(error) or type(error).__name__
        return ""

    async def _restore(self, name: str, was_up: bool) -> None:
        """The files before are back: copies that have the new version, or are gone, as well."""
        if name in self._cluster.state.models and not self._cluster.dispatcher.closed:
            await self._operations.update(name, wait=True)
            if was_up and not self._is_up(name):
                self._cluster.dispatcher.wish(name, "its version before is put back")

    def _is_up(self, name: str) -> bool:
        state = self._cluster.state
        if name not in state.models:
            return False
        return any(one.phase in AWAKE for one in state.instances_of(name))

    def _tell(self, name: str, why: str, else_: str) -> None:
        kind = "refused-model" if why else "new-model"
        self._cluster.tell_news(kind, model=name, why=why or else_)
