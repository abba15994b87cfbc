"""The files of models: which of them each copy was loaded from, and whether they have changed.

What is derived from files (size, shape, runtime) is analysed anew once changed files are settled:
whole, and unchanged for `STILL_S`. The next load uses that. Copies that run keep what they were
loaded from, and are said to be outdated; those that sleep are dropped, since a wake would bring the
old weights back. A load waits for files that are being written, and is begun again if its weights
change under it. Only stat is asked for, and headers of files that have just changed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.core import GOING, Phase
from modelium.errors import ModeliumError
from modelium.live.settings import Served
from modelium.managers.engine import StartError
from modelium.storage.fingerprint import WEIGHTS, FilesIdentity, fingerprint
from modelium.storage.unfinished import LOOK_S, STILL_S, unfinished

if TYPE_CHECKING:
    from modelium.live.context import LiveContext


@dataclass
class SeenFiles:
    """The files of one model."""

    analysed: FilesIdentity
    """Of these the model's size and the rest are known."""
    now: FilesIdentity
    look: int
    """The number of the look that found them so."""
    since_s: float = float("-inf")
    """Since when they have looked as they do now."""
    trouble: str = ""
    """Why those that are there now cannot be served."""


class WatchedFiles:
    """The files of all models, and of which every copy was loaded."""

    def __init__(
        self,
        cluster: LiveContext,
        renew: Callable[[str], Served] | None,
        put: Callable[[Served], None],
    ) -> None:
        """`renew` analyses a model anew, in a thread; None: nothing is derived from files.

        `put` has a model served as it was analysed.
        """
        self._cluster = cluster
        self._renew, self._put = renew, put
        self._seen: dict[str, SeenFiles] = {}
        self._loaded: dict[str, FilesIdentity] = {}
        """By copy."""
        self._turns: dict[str, asyncio.Lock] = {}
        self._looks = itertools.count(1)
        """Numbers of looks, in the order in which they begin."""

    # Books

    def analysed(self, model: str) -> None:
        """What is known of a model was just derived from `Served.files`."""
        served = self._cluster.served[model]
        if served.path is None:
            self._seen.pop(model, None)
        else:
            self._seen[model] = SeenFiles(served.files, served.files, next(self._looks))

    def drop(self, model: str) -> None:
        """A model is served no more."""
        self._seen.pop(model, None)
        self._turns.pop(model, None)

    def forget(self, copy: Copy) -> None:
        """A copy is gone."""
        self._loaded.pop(copy.id, None)

    def adopted(self, copy: Copy, identity: FilesIdentity | None = None) -> None:
        """A copy runs already; `identity` is what it was loaded from, None: what is there now."""
        if (seen := self._seen.get(copy.model)) is not None:
            self._loaded[copy.id] = seen.now if identity is None else identity

    def loaded(self, copy: Copy) -> FilesIdentity:
        """What a copy was loaded from, or is about to be; none if its model has no files."""
        return self._loaded.get(copy.id, FilesIdentity())

    def changed(self, copy: Copy) -> str:
        """Which files have changed since a copy was loaded, in words; "" if none has."""
        seen, loaded = self._seen.get(copy.model), self._loaded.get(copy.id)
        return seen.now.difference(loaded) if seen is not None and loaded is not None else ""

    def outdated(self, copy: Copy) -> str:
        """How a copy differs from what would be loaded now, in words; "" if it does not."""
        return self._cluster.settings_changed.get(copy.id) or self.changed(copy)

    def outdated_copies(self, model: str) -> dict[str, str]:
        """Outdated instances of a model that are not leaving, and how they differ.

        None of a model that is served no more.
        """
        state = self._cluster.state
        if model not in state.models:
            return {}
        copies = [state.copy(one.id) for one in state.instances_of(model)]
        staying = [copy for copy in copies if copy.phase not in GOING]
        return {copy.id: what for copy in staying if (what := self.outdated(copy))}

    def trouble(self, model: str) -> str:
        """Why a model's changed files cannot be served; "" if they can."""
        seen = self._seen.get(model)
        return seen.trouble if seen is not None else ""

    # Looking

    async def look(self) -> None:
        """Look at the files of all models; take up what has changed and is settled."""
        for model in await self._look_at(list(self._seen)):
            seen = self._seen.get(model)
            if seen is None:
                continue
            if self._waits_s(seen) <= 0 and not self._turn(model).locked():
                async with self._turn(model):
                    await self._take_up(model)
            self._drop_sleepers(model)

    async def settle(self, model: str, go_on: Callable[[], None] = lambda: None) -> None:
        """Look at a model now, wait until its files are settled, and take them up.

        `go_on` raises where nobody wants it any more. Nothing is waited for where it is served no
        more. Raises ModeliumError if they cannot be served and StartError if they go on changing
        for as long as a load may take.
        """
        cluster, until_s = self._cluster, self._cluster.now_s() + self._cluster.deadlines.load_s
        while model in self._seen:
            await self._look_at([model])
            go_on()
            if (seen := self._seen.get(model)) is None:
                return
            why = f"{model}: its files are changing"
            if self._waits_s(seen) <= 0:
                async with self._turn(model):
                    why = await self._take_up(model)
                if not why:
                    break
            if cluster.now_s() > until_s:
                raise StartError(f"{why} for {cluster.deadlines.load_s:g} s")
            await asyncio.sleep(LOOK_S)
        if trouble := self.trouble(model):
            raise StartError(f"{model}: {trouble}")

    async def _look_at(self, models: Collection[str]) -> dict[str, FilesIdentity]:
        """Look at the files of some models, and note what has changed; gives what was found."""
        number, served = next(self._looks), self._cluster.served
        paths = {
            model: path
            for model in models
            if model in self._seen and (path := served[model].path) is not None
        }
        found = await self._cluster.call(
            lambda: {model: fingerprint(path) for model, path in paths.items()}
        )
        for model, identity in found.items():
            if model in served and served[model].path == paths[model]:
                self._note(model, identity, number)
        return found

    def _note(self, model: str, identity: FilesIdentity, number: int) -> None:
        """A look has found files so, unless one that began later has found them already."""
        seen = self._seen.get(model)
        if seen is None or number < seen.look:
            return
        seen.look = number
        if identity == seen.now:
            return
        what = identity.difference(seen.now)
        seen.now, seen.since_s = identity, self._cluster.now_s()
        self._cluster.tell_news("files", model=model, why=f"its files have changed: {what}")

    def _waits_s(self, seen: SeenFiles) -> float:
        """How much longer files have to be still."""
        return seen.since_s + STILL_S - self._cluster.now_s()

    def _turn(self, model: str) -> asyncio.Lock:
        return self._turns.setdefault(model, asyncio.Lock())

    async def _take_up(self, model: str) -> str:
        """Analyse settled files anew, if they are others than before; why they are not settled."""
        cluster, seen = self._cluster, self._seen.get(model)
        if seen is None or seen.now == seen.analysed:
            return ""
        identity, path = seen.now, cluster.served[model].path
        assert path is not None, "only models with files are seen"
        if why := await cluster.call(unfinished, path):
            return f"{model}: {why}"
        served, trouble = None, ""
        try:
            if self._renew is not None and self._seen.get(model) is seen:
                served = await cluster.call(self._renew, model)
        except Exception as error:  # also the analysis's own mistakes: other models are looked at
            known = isinstance(error, (ModeliumError, OSError))
            trouble = str(error) if known else f"{type(error).__name__}: {error}"
        if self._seen.get(model) is not seen:  # it is served no more, or otherwise, since then
            return f"{model}: what is served has changed"
        if trouble and seen.trouble != trouble:
            cluster.tell_news("files", model=model, why=f"cannot be served: {trouble}")
        seen.trouble, seen.analysed = trouble, identity
        if served is not None:
            cluster.learnt.forget(model)
            self._put(served)
            seen = self._seen[model]
            if served.files != identity:  # they changed just before: once more when they are still
                seen.analysed, seen.since_s = identity, cluster.now_s()
                return f"{model}: its files are changing"
            cluster.tell_news("files", model=model, why="its changed files are analysed anew")
        return ""

    def _drop_sleepers(self, model: str) -> None:
        """Unload copies that sleep with older weights."""
        for name, what in self.outdated_copies(model).items():
            copy = self._cluster.state.copy(name)
            if copy.phase is Phase.ASLEEP:
                self._cluster.dismiss(copy, f"outdated: {what}")

    # Loads and wakes

    async def read(self, copy: Copy) -> None:
        """A copy is about to be loaded: from settled files, whose size is known.

        Raises StartError where they cannot be served, or where the load has to be begun again.
        """
        cluster = self._cluster
        size = copy.bytes_per_gpu - copy.extra_bytes
        await self.settle(copy.model, lambda: cluster.check(copy))
        cluster.check(copy)
        if copy.model not in self._seen:
            return
        if cluster.state.models[copy.model].bytes_per_gpu() > size:
            cluster.cancel(copy, "its files have changed, and it needs more than before")
            cluster.check(copy)
        self._loaded[copy.id] = self._seen[copy.model].now

    async def confirm(self, copy: Copy) -> None:
        """A copy is loaded: did its weights change meanwhile? Raises StartError if they did."""
        found = (await self._look_at([copy.model])).get(copy.model, FilesIdentity())
        loaded = self.loaded(copy)
        before = {one.name: one for one in loaded.files}
        for one in found.files:
            if one.name.endswith(WEIGHTS) and before.get(one.name, one) != one:
                self._cluster.cancel(copy, f"{one.name} was changed while it was loaded")
        self._cluster.check(copy)

    async def compare(self, copy: Copy) -> None:
        """A copy is about to be woken: not with weights of files that are others by now."""
        await self._look_at([copy.model])
        if what := self.changed(copy):
            self._cluster.cancel(copy, f"its files changed since it was loaded: {what}")
        self._cluster.check(copy)
