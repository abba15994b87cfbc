"""What operators see and do: plain values out, actions in, each with its reason in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from modelium.control.rules import must_stay
from modelium.control.state import Copy
from modelium.core import COMING, GOING, Action, Done, Event, Model, Phase, Sleep, Unload, Wake
from modelium.errors import ModeliumError, did_you_mean
from modelium.live.engines.actions import cannot_sleep
from modelium.live.engines.replacement import replace_copies
from modelium.live.records.events import News, as_news
from modelium.live.requests.interface import CONFLICT, NOT_FOUND, UNAVAILABLE, RefusedError

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster
    from modelium.live.control_loop import ControlLoop

REASON = "operator asked for it (1 call)"


class AdminService:
    """One live cluster and its policy, as an operator meets them."""

    def __init__(
        self,
        cluster: LiveCluster,
        driver: ControlLoop,
        policy: str,
        removed: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`removed` is told the name of a model that is served no more."""
        self._removed = removed
        self._cluster = cluster
        self._driver = driver
        self.policy = policy
        self.reloads: Callable[[], Awaitable[dict[str, Any]]] | None = None
        """Reads the configuration again, where there is one."""
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._replacing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By model, held while its copies are replaced; gone when nobody wants it."""
        cluster.watchers.events.append(self._done)

    # What there is

    def status(self) -> dict[str, Any]:
        """The whole in a few figures."""
        cluster = self._cluster
        state, dispatcher = cluster.state, cluster.dispatcher
        return {
            "policy": self.policy,
            "up_s": cluster.now_s(),
            "models": len(state.models),
            "instances": len(state.instances),
            "waiting": sum(dispatcher.queue.waiting(model) for model in dispatcher.queue.models()),
            "running": len(dispatcher.seats),
            "request_rate_per_s": sum(d.request_rate_per_s for d in state.demand.values()),
            "stopping": dispatcher.closed,
            "pretend_gpus": cluster.memory.inventory.pretend,
            "policy_faults": self._driver.faults,
            "decide_s": cluster.channel.decide_s,
            "journal": {
                "path": str(cluster.journal.path),
                "failures": cluster.journal.failures,
                "failing": cluster.journal.failing,
            },
            "hosts": [self._host(name) for name in state.nodes],
            "gpus": [self._gpu(name) for name in state.all_gpus],
        }

    def models(self) -> list[dict[str, Any]]:
        """Every model that is served."""
        return [self._model(model) for model in self._cluster.state.models.values()]

    def runtime_of(self, model: str) -> str:
        """What serves it; "" for unknown models."""
        served = self._cluster.served.get(model)
        return served.runtime if served else ""

    async def decisions(self, model: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The latest decisions of this run, newest first; old ones are in the journal.

        Raises JournalError.
        """
        cluster, kept = self._cluster, self._cluster.decisions
        of_it = (line for _, line in reversed(kept) if not model or line.model == model)
        lines = list(islice(of_it, limit))
        if len(lines) < limit and len(kept) == kept.maxlen:
            oldest, more = kept[0][0], limit - len(lines)
            lines += await cluster.call(cluster.journal.decisions, model, oldest, more)
        return [as_news(line) for line in lines]

    async def usage(self) -> list[dict[str, Any]]:
        """Requests, tokens and GPU-seconds by organization, over all runs. Raises JournalError."""
        return await self._cluster.call(self._cluster.journal.usage)

    def subscribe(self, hear: News) -> Callable[[], None]:
        """Tell `hear(what, about)` of all that happens, until the returned function is called."""
        news = self._cluster.watchers.news
        news.append(hear)
        return lambda: news.remove(hear)

    # What can be done

    async def load(self, model: str) -> dict[str, Any]:
        """Have a copy loaded (or woken) where the policy puts it; return when it is ready.

        Raises RefusedError: 404 for unknown models, 503 if it cannot be loaded.
        """
        self._known(model)
        cluster = self._cluster
        cluster.failures.forget(model)
        if not self._ready(model):
            await cluster.dispatcher.want(model, REASON)
        return self._told(model)

    async def unload(self, model: str) -> dict[str, Any]:
        """Let all copies finish their requests and go; a load or wake under way is cancelled.

        Requests that wait for such a load are refused, else it would be begun again at once; a
        later one has the model loaded again. Raises RefusedError: 404, 409.
        """
        self._known(model)
        state = self._cluster.state
        here = {copy.id for copy in state.instances_of(model)}
        self._cancel_loads(model)
        while True:
            changed = self._cluster.changed
            await self._each(model, lambda copy: Unload(copy.id, REASON, drain=True), among=here)
            left = [state.copy(name) for name in here if name in state.instances]
            if stuck := [copy.id for copy in left if copy.stuck]:
                raise RefusedError(CONFLICT, f"{stuck[0]} does not end; it is tried again")
            if not left:
                return self._told(model)
            await changed.wait()

    async def sleep(self, model: str, level: int = 1) -> dict[str, Any]:
        """Let all awake copies finish their requests and sleep. Raises RefusedError: 404, 409."""
        self._known(model)
        if not self._ready(model) and (coming := self._coming(model)):
            raise RefusedError(CONFLICT, f"{coming[0].id} is {coming[0].phase}: not awake yet")
        for one in self._cluster.state.instances_of(model):
            copy = self._cluster.state.copy(one.id)
            if copy.phase is Phase.READY and (why := cannot_sleep(self._cluster, copy)):
                raise RefusedError(CONFLICT, why)
        return await self._each(
            model,
            lambda copy: Sleep(copy.id, level, REASON, drain=True),
            (Phase.READY,),
        )

    async def wake(self, model: str) -> dict[str, Any]:
        """Wake all sleeping copies. Raises RefusedError: 404, 409."""
        return await self._each(model, lambda copy: Wake(copy.id, REASON), (Phase.ASLEEP,))

    async def update(self, model: str, *, wait: bool = False) -> dict[str, Any]:
        """Have copies of older files, or of other settings, replaced; `updated` says how.

        While others replace its copies, it waits or refuses. It goes on if the caller is cancelled.
        Raises RefusedError: 404, 409, 503.
        """
        self._known(model)
        if why := self._cluster.dispatcher.going.get(model):
            raise RefusedError(CONFLICT, why)
        if self._replaces(model).locked() and not wait:
            raise RefusedError(CONFLICT, f"{model} is being updated already")
        return await asyncio.shield(self._cluster.spawn(self._update(model)))

    async def _update(self, model: str) -> dict[str, Any]:
        cluster = self._cluster
        async with self._replaces(model):
            cluster.failures.forget(model)
            try:
                await cluster.files.settle(model)
            except ModeliumError as error:
                raise RefusedError(CONFLICT, f"{model} is not updated: {error}") from None
            done: list[str] = []
            while not cluster.dispatcher.closed and (old := cluster.files.outdated_copies(model)):
                done += await replace_copies(
                    cluster, {name: f"update: {what}" for name, what in old.items()}, self._follow
                )
        told = done or [f"{model} is up to date"]
        return {**self._told(model), "updated": told}

    async def update_adopted(self) -> None:
        """Update, one after another, models that have outdated copies; news tell failures."""
        models = list(self._cluster.state.models)
        for model in sorted(name for name in models if self._cluster.files.outdated_copies(name)):
            try:
                await self.update(model, wait=True)
            except RefusedError as error:
                self._cluster.tell_news("files", model=model, why=str(error))

    def pin(self, model: str, pinned: bool = True) -> dict[str, Any]:
        """Keep a model loaded whatever the policy thinks, or no longer.

        Raises RefusedError: 404, 409 if it is being removed.
        """
        self._known(model)
        if why := self._cluster.dispatcher.going.get(model):
            raise RefusedError(CONFLICT, why)
        self._cluster.registry.pin(model, pinned)
        if pinned and not self._ready(model):
            self._cluster.dispatcher.wish(model, "it is pinned (1 copy)")
        return self._told(model)

    async def remove(self, model: str) -> None:
        """Serve a model no more: its copies finish, go, and then it is forgotten.

        It goes on if the caller is cancelled. Raises RefusedError: 404, 409.
        """
        self._known(model)
        if why := self._cluster.dispatcher.going.get(model):
            raise RefusedError(CONFLICT, why)
        self._cluster.registry.close(model)
        gone = self._go(model, "an operator removed it", self._removed)
        await asyncio.shield(self._cluster.spawn(gone))

    async def _go(self, model: str, why: str, removed: Callable[[str], None] | None = None) -> None:
        """See its copies off, then forget it. Raises RefusedError if one has to stay."""
        try:
            await self._clear(model)
            if removed is not None:  # before its name is free, so that no reload finds it there
                await self._cluster.call(removed, model)
        except BaseException:
            self._cluster.registry.reopen(model)
            raise
        self._cluster.registry.drop(model)
        self._cluster.tell_news("removed-model", model=model, why=why)

    async def withdraw(self, model: str) -> None:
        """Serve a model no more that the configuration names no longer; its files stay."""
        why = "the configuration names it no longer"
        self._cluster.registry.close(model)
        try:
            await self._go(model, why)
        except RefusedError as error:
            self._cluster.tell_news("removal-failed", model=model, why=f"not removed: {error}")

    def replace(self, model: str, reason: str) -> None:
        """Have all copies that there are now replaced, in the background; news tell failures."""
        copies = [copy.id for copy in self._cluster.state.instances_of(model)]
        self._cluster.spawn(self._replace(model, dict.fromkeys(copies, reason)))

    async def _replace(self, model: str, reasons: Mapping[str, str]) -> None:
        async with self._replaces(model):
            try:
                await replace_copies(self._cluster, reasons, self._follow)
            except RefusedError as error:
                self._cluster.tell_news("replacement-failed", model=model, why=str(error))

    async def reload(self) -> dict[str, Any]:
        """Take up what has changed in the configuration; says what. Raises RefusedError (409)."""
        if self.reloads is None:
            raise RefusedError(CONFLICT, "this server has no configuration to read again")
        return await self.reloads()

    # How

    async def _clear(self, model: str) -> None:
        """See all copies of a model gone, pinned or needed or not; what comes up is given up.

        Raises RefusedError if one of them cannot go.
        """
        cluster, reason = self._cluster, "it is removed (1 call)"
        state = cluster.state
        while copies := [state.copy(one.id) for one in state.instances_of(model)]:
            changed = cluster.changed
            for copy in copies:
                if copy.phase in COMING:
                    cluster.cancel(copy, reason)
            here = [copy for copy in copies if copy.phase in (Phase.READY, Phase.ASLEEP)]
            asked = (partial(cluster.dismiss, copy, reason) for copy in here)
            ends = await asyncio.gather(*map(self._follow, asked))
            for copy, error in zip(here, ends, strict=True):
                stays = copy.stuck or copy.phase not in GOING
                if error and stays and copy.id in state.instances:
                    raise RefusedError(CONFLICT, error)
            await changed.wait()

    def _cancel_loads(self, model: str) -> None:
        """Stop what loads or wakes. Raises RefusedError (409) if it has to be there."""
        cluster, coming = self._cluster, self._coming(model)
        for copy in coming:
            if why := must_stay(cluster.state, copy):
                raise RefusedError(CONFLICT, why)
        if coming and not self._ready(model):
            why = f"{model} was unloaded by an operator before it was ready"
            cluster.dispatcher.refuse_all(model, UNAVAILABLE, why, cluster.left_s(model))
        for copy in coming:
            cluster.cancel(copy, "an operator unloaded it")

    def _coming(self, model: str) -> list[Copy]:
        state = self._cluster.state
        return [state.copy(c.id) for c in state.instances_of(model) if c.phase in COMING]

    async def _each(
        self,
        model: str,
        action: Any,
        phases: tuple[Phase, ...] = (Phase.READY, Phase.ASLEEP),
        among: Collection[str] | None = None,
    ) -> dict[str, Any]:
        """Do something with the copies in these phases, if given only those `among` them."""
        self._known(model)
        state = self._cluster.state
        copies = [
            state.copy(one.id)
            for one in state.instances_of(model)
            if one.phase in phases and (among is None or one.id in among)
        ]
        ends = await asyncio.gather(*(self.act(action(copy)) for copy in copies))
        if error := next(filter(None, ends), ""):
            raise RefusedError(CONFLICT, error)
        return self._told(model)

    async def act(self, action: Action) -> str:
        """Start an action and wait for its end; returns the error, or ""."""

        def start() -> Action:
            self._cluster.start(action)
            return action

        return await self._follow(start)

    async def _follow(self, start: Callable[[], Action]) -> str:
        """Wait for the end of what `start` begins, which is told later; the error, or ""."""
        action, ended = start(), asyncio.get_running_loop().create_future()
        self._asked[id(action)] = ended
        try:
            return str(await ended)
        finally:
            del self._asked[id(action)]

    def _done(self, event: Event) -> None:
        ended = self._asked.get(id(event.action)) if isinstance(event, Done) else None
        if isinstance(event, Done) and ended is not None and not ended.done():
            ended.set_result(event.error)

    def _replaces(self, model: str) -> asyncio.Lock:
        """Whoever replaces copies of a model holds this."""
        return self._replacing.setdefault(model, asyncio.Lock())

    def _known(self, model: str) -> None:
        models = self._cluster.state.models
        if model not in models:
            hint = did_you_mean(model, models)
            raise RefusedError(NOT_FOUND, f"no model called {model!r}.{hint}")

    def _told(self, model: str) -> dict[str, Any]:
        """A model as it is now. Raises RefusedError: 404 if it was removed meanwhile."""
        self._known(model)
        return self._model(self._cluster.state.models[model])

    def _ready(self, model: str) -> bool:
        return any(c.phase is Phase.READY for c in self._cluster.state.instances_of(model))

    def _host(self, name: str) -> dict[str, Any]:
        """RAM of a node, in bytes of weights."""
        ram = self._cluster.state.ram[name]
        return {
            "node": name,
            "capacity_bytes": ram.capacity_bytes,
            "sleeping_bytes": ram.pinned_bytes,
            "cached_bytes": ram.cached_bytes,
            "free_bytes": ram.free_bytes,
        }

    def _gpu(self, name: str) -> dict[str, Any]:
        cluster = self._cluster
        gpu = cluster.state.all_gpus[name]
        reading = cluster.memory.readings.get(cluster.devices[name])
        return {
            "id": name,
            "node": gpu.node,
            "kind": gpu.kind,
            "memory_bytes": gpu.memory_bytes,
            "booked_bytes": gpu.memory_bytes - cluster.state.free_bytes(name),
            "used_bytes": reading.used_bytes if reading else None,
            "utilisation": reading.utilisation if reading else None,
            "lost": reading.lost if reading else "",
            "instances": [
                self._copy(cluster.state.copy(c.id)) for c in cluster.state.instances_on(name)
            ],
        }

    def _model(self, model: Model) -> dict[str, Any]:
        cluster = self._cluster
        demand, served = cluster.state.demand[model.name], cluster.served[model.name]
        copies = [cluster.state.copy(c.id) for c in cluster.state.instances_of(model.name)]
        trouble = cluster.failures.of(model.name)
        used_s = max((c.last_used_s for c in copies), default=demand.last_arrival_s)
        waited_for = model.name in cluster.dispatcher.waiting_models()
        outlook = cluster.pending_loads.outlook(model.name) if waited_for else None
        return {
            "name": model.name,
            "status": _status(copies, trouble is not None and trouble.failed),
            "runtime": served.runtime,
            "path": str(served.path or ""),
            "gpus": sorted({gpu for copy in copies for gpu in copy.gpus}),
            "gpus_allowed": None if model.gpus_allowed is None else sorted(model.gpus_allowed),
            "instances": [self._copy(copy) for copy in copies],
            "pinned": model.pinned,
            "qps": demand.request_rate_per_s,
            "waiting": cluster.dispatcher.queue.waiting(model.name),
            "oldest_wait_s": cluster.dispatcher.queue.oldest_wait_s(model.name),
            "waits_for": outlook.why if outlook else "",
            "left_s": outlook.left_s if outlook else None,
            "idle_s": None if used_s == float("-inf") else max(0.0, cluster.now_s() - used_s),
            "bytes_per_gpu": model.bytes_per_gpu(),
            "requests": demand.arrivals,
            "files_changed": next(filter(None, map(cluster.files.outdated, copies)), ""),
            "files_error": cluster.files.trouble(model.name),
            "error": trouble.why if trouble else "",
            "log": trouble.log if trouble else "",
        }

    def _copy(self, copy: Copy) -> dict[str, Any]:
        engine, coming = self._cluster.engines.get(copy.id), self._cluster.pending_loads.of(copy.id)
        now_s = self._cluster.now_s()
        return {
            "id": copy.id,
            "model": copy.model,
            "phase": copy.phase.value,
            "stuck": copy.stuck,
            "sleep_level": copy.sleep_level,
            "gpus": list(copy.gpus),
            "running": copy.running,
            "waiting": copy.waiting,
            "served": copy.served,
            "bytes_per_gpu": copy.bytes_per_gpu,
            "files_changed": self._cluster.files.changed(copy),
            "settings_changed": self._cluster.settings_changed.get(copy.id, ""),
            "url": engine.url if engine else "",
            "api": engine.api if engine else "",
            "engine_name": engine.name if engine else "",
            "pid": engine.process.pid if engine and engine.process else None,
            "log": engine.log if engine else "",
            "stage": coming.stage if coming else "",
            "share": coming.share(now_s) if coming else None,
            "left_s": coming.left_s(now_s) if coming else None,
        }


def _status(copies: list[Copy], failed: bool) -> str:
    """The best that can be said of a model's copies."""
    phases = {copy.phase for copy in copies}
    for phase in (Phase.READY, Phase.WAKING, Phase.LOADING, Phase.ASLEEP):
        if phase in phases:
            return phase.value
    return "failed" if failed else "leaving" if phases else "unloaded"
