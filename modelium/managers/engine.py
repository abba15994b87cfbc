"""What the executor asks of every manager: engines that start, sleep, wake and stop.

A *manager* knows one runtime (vLLM, Triton, Ray Serve, the emulation). Its methods block and are
called from worker threads, several at a time for different instances; none keeps a secret: an
`Engine` is plain data that goes into the journal, so that a later executor can adopt what runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from modelium.errors import ModeliumError
from modelium.managers.identity import Process

Api = Literal["openai", "kserve"]
"""What the engine speaks: OpenAI's HTTP API, or KServe's v2 inference protocol over HTTP."""

Progress = Callable[[str, float], None]
"""Told the stage of a start as it begins ("process", "weights", "compile", ...), and the share of
the stage that is done, 0 to 1; called from the manager's thread."""


class StartError(ModeliumError):
    """An engine did not come up. The message is the cause in one line, fit for a client."""

    def __init__(
        self, why: str, *, log: str = "", out_of_memory: bool = False, final: bool = False
    ) -> None:
        super().__init__(why)
        self.log = log
        """The last lines that the engine wrote."""
        self.out_of_memory = out_of_memory
        """More room may help: somebody else's memory has to go first."""
        self.final = final
        """Another try would end in the same way: a setting or a file has to be changed first."""


class EngineError(ModeliumError):
    """A running engine did not do what it was asked (sleep, wake, stop)."""


@dataclass(frozen=True, slots=True)
class Order:
    """One instance to bring up."""

    instance: str
    """Unique id, such as "llama-8b#3"."""
    model: str
    """The name that clients use."""
    path: Path | None = None
    """Folder of the model's files; None if the runtime needs none."""
    devices: tuple[int, ...] = (0,)
    """GPUs by number."""
    bytes_per_gpu: int = 0
    """What it may take of each: weights, KV pool and overhead. 0: no limit is known."""
    memory_bytes: int = 0
    """What each of those GPUs has in all; 0 if unknown."""
    kv_bytes_per_gpu: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The runtime's own settings for this model, under its own names."""
    can_sleep: bool = False
    """It will be put to sleep: the engine has to be started so that it can be."""
    deadline_s: float = 600.0
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set by the executor to give the start up; the manager looks at least once a second."""
    uuids: tuple[str, ...] = ()
    """The GPUs by the driver's own names, which stay when it counts anew; empty for GPUs that are
    pretended or were named by number."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One running instance."""

    instance: str
    model: str
    runtime: str
    url: str
    """Base address, such as "http://127.0.0.1:8101"; for OpenAI without "/v1"."""
    api: Api
    name: str
    """What the engine calls the model."""
    devices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()
    """As in the order: by these it is found on its GPUs after a restart."""
    process: Process | None = None
    """Leader of the engine's own process group; None where a server holds several engines."""
    log: str = ""
    """Path of its log file."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage of its start."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What its manager needs to find it again."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Engine:
        """Read back what `as_dict` gave and JSON kept."""
        process = given.get("process")
        return cls(
            **{
                **given,
                "devices": tuple(given["devices"]),
                "uuids": tuple(given.get("uuids", ())),
                "process": Process.from_dict(process) if process else None,
            }
        )


class Manager(Protocol):
    """Brings up, suspends and ends engines of one runtime. Safe to call from several threads."""

    @property
    def runtime(self) -> str:
        """vllm, triton, ray or emulated."""

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        """Bring up an instance; return when it has answered a first small request.

        Raises StartError, with nothing left running, if it fails, if `order.deadline_s` passes
        or if `order.cancelled` is set.
        """

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        """End an instance and return when no process of it is left; no matter if it is gone.

        Nobody sends it requests any more. Raises EngineError if something survives even SIGKILL.
        """

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        """Free its GPU memory and return when the engine says that it sleeps.

        Raises EngineError, also where the runtime cannot.
        """

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        """Bring it back and return when it has answered a first small request."""

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        """Say why a running engine cannot serve (gone, or no answer), or return "".

        A busy engine that makes progress is not in trouble.
        """

    def adopt(self, engine: Engine) -> bool:
        """Take over what an earlier executor started; False if it is not the same or not well."""

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        """End what this manager's earlier selves started and that is not `known`; say what."""

    def close(self) -> None:
        """Give up what the manager itself holds (servers, connections); engines are stopped."""
