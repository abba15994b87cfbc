"""What the parts of a live cluster have at hand, and what they may ask of it.

Each part (`modelium.live.engines`, `modelium.live.models`) is given this, and those other parts
that it needs; none of them knows the cluster as a whole.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import filterfalse
from typing import Any, TypeVar

from modelium.control.lifecycle import DataPlane, Lifecycle
from modelium.control.state import Copy, State
from modelium.core import Action, Outlook, Unload
from modelium.live.engines.backoff import Failures
from modelium.live.engines.calibration import CalibratedCosts, Calibration
from modelium.live.records.events import EventBus
from modelium.live.records.journal import Journal
from modelium.live.requests.dispatcher import Control, Dispatcher
from modelium.live.settings import LiveInput, Served
from modelium.managers.engine import Engine, Manager, StartError

T = TypeVar("T")
THREADS = 64
"""Managers that block at the same time: one per transition, and the probes."""


class LiveContext(ABC):
    """The event loop and its threads, the clock, the state, the journal, the engines."""

    def __init__(
        self,
        given: LiveInput,
        managers: Mapping[str, Manager],
        journal: Journal,
        control: Control,
        data_plane: DataPlane,
    ) -> None:
        """Must be made inside the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.managers = managers
        self.journal = journal
        self.deadlines = given.deadlines
        self.retention = given.retention
        self.devices = dict(given.devices)
        self.share = given.share
        self.facts = given.facts
        self.served: dict[str, Served] = {}
        """The models that are served now, by name; `ModelRegistry` changes it."""
        self.engines: dict[str, Engine] = {}
        self.lost: dict[str, str] = {}
        """Instances that were lost during a transition, and why."""
        self.outlook: Callable[[str], Outlook | None] = lambda model: None
        """What the policy says that requests for a model may expect."""
        self.settings_changed: dict[str, str] = {}
        """Adopted instances that were started with other settings than those of now, and which."""
        self.notes: list[str] = []
        """What is to be said of engines of an earlier run."""
        self.waits_for_room: dict[str, asyncio.Future[None]] = {}
        self.watchers = EventBus()
        self.changed = asyncio.Event()
        """Happens, once, when the next transition ends or the next lost instance has gone."""
        self._origin = time.monotonic()
        self._number = journal.last_number()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="manager")
        self.state = State(
            {},
            {node.id: node for node in given.nodes},
            {gpu.id: gpu for gpu in given.gpus},
            {},
            self.now_s,
            lambda: filterfalse(self.failures.rests, self.dispatcher.waiting_models()),
            given.limits,
        )
        self.learnt = Calibration.read(journal)
        self.state.costs = CalibratedCosts(self.state, self.facts, given.work, self.learnt)
        self.lifecycle = Lifecycle(self.state, data_plane)
        self.failures = Failures(self.now_s, given.patience)
        self.dispatcher = Dispatcher(
            self.state, self.engines, self.failures, given.dispatch, control
        )

    # What the cluster does for its parts

    @abstractmethod
    def start(self, action: Action) -> None:
        """Begin an action as a policy's would be; `Done` follows, also when it is refused."""

    @abstractmethod
    def dismiss(self, copy: Copy, reason: str) -> Unload:
        """Let an instance finish its requests and go, though it be pinned or needed."""

    @abstractmethod
    def kill(self, copy: Copy, why: str, news: str = "lost") -> None:
        """An instance is lost at once, in whatever phase."""

    @abstractmethod
    def cancel(self, copy: Copy, why: str) -> None:
        """Stop a load or wake under way. It is no failure."""

    @abstractmethod
    def idle_event(self, copy: Copy) -> asyncio.Event:
        """Happens when an instance that takes no more requests has answered its last."""

    @abstractmethod
    def reconsider(self) -> None:
        """What stood in the way of a load has gone, and no event told of it."""

    def check(self, copy: Copy) -> None:
        """Raises StartError if a copy was lost meanwhile: its transition ends here."""
        if copy.id in self.lost:
            raise StartError(self.lost[copy.id])

    def pulse(self) -> None:
        """Something has ended: wake up whoever waits for `changed`."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    def tell_news(self, what: str, /, **about: Any) -> None:
        """Let all watchers know."""
        self.watchers.news.tell(what, about)

    # Time, names, threads and tasks

    def now_s(self) -> float:
        """Seconds since the cluster began."""
        return time.monotonic() - self._origin

    @property
    def last_number(self) -> int:
        """The highest number that an instance ever had."""
        return self._number

    def new_name(self, model: str) -> str:
        """A name that no instance ever had."""
        self._number += 1
        return f"{model}#{self._number}"

    async def call(self, do: Callable[..., T], *args: Any) -> T:
        """Let something block in a worker thread."""
        return await self.loop.run_in_executor(self._pool, do, *args)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside; whoever closes the cluster waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self) -> None:
        """Wait until no transition is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def shut(self) -> None:
        """The threads are no more needed."""
        self._pool.shutdown(wait=False, cancel_futures=True)
