"""The files of models: which of them each copy was loaded from, and whether they have changed.

What is derived from files (size, shape, runtime) is analysed anew once changed files are settled:
whole, and unchanged for `STILL_S`. The next load uses that. Copies that run keep what they were
loaded from, and are said to be outdated; those that sleep are dropped, since a wake would bring the
old weights back. A load waits for files that are being written, and is begun again if its weights
change under it. Only stat is asked for, and headers of files that have just changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelium.core import Phase
from modelium.errors import ModeliumError
from modelium.fingerprint import FilesIdentity, fingerprint
from modelium.live.given import Served
from modelium.managers.engine import StartError
from modelium.state import Copy
from modelium.unfinished import unfinished

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

STILL_S = 2.0
"""Files that have not changed for so long are taken for whole."""
LOOK_S = 0.25
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf", ".plan", ".engine", ".pb")
MATTER = (*WEIGHTS, ".json", ".txt", ".py", ".model", ".pbtxt", ".jinja", ".tiktoken", ".data")
"""Endings of files that a model is served from; what it writes beside them, as logs, is its own."""


@dataclass
class Seen:
    """The files of one model."""

    analysed: FilesIdentity
    """Of these the model's size and the rest are known."""
    now: FilesIdentity
    since_s: float = float("-inf")
    """Since when they have looked as they do now."""
    trouble: str = ""
    """Why those that are there now cannot be served."""


class Files:
    """The files of all models, and of which every copy was loaded."""

    def __init__(self, cluster: LiveCluster, renew: Callable[[str], Served] | None) -> None:
        """`renew` analyses a model anew, in a thread; None: nothing is derived from files."""
        self._cluster = cluster
        self._renew = renew
        self._seen: dict[str, Seen] = {}
        self._loaded: dict[str, FilesIdentity] = {}
        """By copy."""
        self._turns: dict[str, asyncio.Lock] = {}

    # Books

    def analysed(self, model: str) -> None:
        """What is known of a model was just derived from its files."""
        if (path := self._cluster.roster.served[model].path) is not None:
            found = _that_matter(fingerprint(path))
            self._seen[model] = Seen(found, found)

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
            self._loaded[copy.id] = seen.now if identity is None else _that_matter(identity)

    def outdated(self, copy: Copy) -> str:
        """What has changed since a copy was loaded, in words; "" if nothing has."""
        seen, loaded = self._seen.get(copy.model), self._loaded.get(copy.id)
        return seen.now.difference(loaded) if seen is not None and loaded is not None else ""

    def trouble(self, model: str) -> str:
        """Why a model's changed files cannot be served; "" if they can."""
        seen = self._seen.get(model)
        return seen.trouble if seen is not None else ""

    # Looking

    async def look(self) -> None:
        """Look at the files of all models; take up what has changed and is settled."""
        paths = {name: one.path for name, one in self._cluster.roster.served.items() if one.path}
        found = await self._cluster.call(
            lambda: {name: _that_matter(fingerprint(path)) for name, path in paths.items()}
        )
        for name, identity in found.items():
            served = self._cluster.roster.served.get(name)
            if served is None or served.path != paths[name] or name not in self._seen:
                continue
            self._note(name, identity)
            if self._waits_s(self._seen[name]) <= 0 and not self._turn(name).locked():
                async with self._turn(name):
                    await self._take_up(name)
            self._drop_sleepers(name)

    async def settle(self, model: str, go_on: Callable[[], None] = lambda: None) -> None:
        """Look at a model now, wait until its files are settled, and take them up.

        `go_on` raises where nobody wants it any more. Raises ModeliumError if they cannot be served
        and StartError if they go on changing for as long as a load may take.
        """
        cluster, until_s = self._cluster, self._cluster.now_s() + self._cluster.deadlines.load_s
        while (seen := self._seen.get(model)) is not None:
            path = cluster.roster.served[model].path
            assert path is not None, "only models with files are seen"
            self._note(model, _that_matter(await cluster.call(fingerprint, path)))
            go_on()
            wait_s, why = self._waits_s(seen), f"{model}: its files are changing"
            if wait_s <= 0:
                async with self._turn(model):
                    why = await self._take_up(model)
                if not why:
                    break
            if cluster.now_s() > until_s:
                raise StartError(f"{why} for {cluster.deadlines.load_s:g} s")
            await asyncio.sleep(LOOK_S)
        if trouble := self.trouble(model):
            raise StartError(f"{model}: {trouble}")

    def _note(self, model: str, identity: FilesIdentity) -> None:
        seen = self._seen[model]
        if identity == seen.now:
            return
        what = identity.difference(seen.now)
        seen.now, seen.since_s = identity, self._cluster.now_s()
        self._cluster.tell_news("files", model=model, why=f"its files have changed: {what}")

    def _waits_s(self, seen: Seen) -> float:
        """How much longer files have to be still."""
        return seen.since_s + STILL_S - self._cluster.now_s()

    def _turn(self, model: str) -> asyncio.Lock:
        return self._turns.setdefault(model, asyncio.Lock())

    async def _take_up(self, model: str) -> str:
        """Analyse settled files anew, if they are others than before; why they are not settled."""
        cluster, seen = self._cluster, self._seen[model]
        identity = seen.now
        path = cluster.roster.served[model].path
        if identity == seen.analysed or path is None:
            return ""
        if why := await cluster.call(unfinished, path):
            return f"{model}: {why}"
        try:
            served = await cluster.call(self._renew, model) if self._renew is not None else None
            seen.trouble = ""
        except ModeliumError as error:
            if seen.trouble != str(error):
                cluster.tell_news("files", model=model, why=f"cannot be served: {error}")
            seen.trouble, served = str(error), None
        if model not in cluster.roster.served:
            return ""
        if served is not None:
            cluster.learnt.forget(model)
            cluster.roster.put(served)  # which looks at the files again
            seen = self._seen[model]
            if seen.now != identity:
                seen.since_s = cluster.now_s()
            cluster.tell_news("files", model=model, why="its changed files are analysed anew")
        seen.analysed = identity
        return ""

    def _drop_sleepers(self, model: str) -> None:
        """Unload copies that sleep with older weights."""
        for name, what in self._cluster.outdated_copies(model).items():
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
        seen, loaded = self._seen.get(copy.model), self._loaded.get(copy.id)
        path = self._cluster.roster.served[copy.model].path
        if seen is None or loaded is None or path is None:
            return
        self._note(copy.model, _that_matter(await self._cluster.call(fingerprint, path)))
        before = {one.name: one for one in loaded.files}
        for one in self._seen[copy.model].now.files:
            if one.name.endswith(WEIGHTS) and before.get(one.name, one) != one:
                self._cluster.cancel(copy, f"{one.name} was changed while it was loaded")
        self._cluster.check(copy)

    async def compare(self, copy: Copy) -> None:
        """A copy is about to be woken: not with weights of files that are others by now."""
        path = self._cluster.roster.served[copy.model].path
        if copy.model in self._seen and path is not None:
            self._note(copy.model, _that_matter(await self._cluster.call(fingerprint, path)))
        if what := self.outdated(copy):
            self._cluster.cancel(copy, f"its files changed since it was loaded: {what}")
        self._cluster.check(copy)


def _that_matter(identity: FilesIdentity) -> FilesIdentity:
    return FilesIdentity(tuple(one for one in identity.files if one.name.endswith(MATTER)))
