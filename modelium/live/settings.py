"""What a live cluster is told, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelium.control.costs import ConfiguredFacts, Work
from modelium.core import Gpu, Limits, Model, Node
from modelium.live.engines.backoff import Patience
from modelium.live.engines.host_memory import HostMemory
from modelium.live.requests.dispatcher import DispatchSettings
from modelium.storage.fingerprint import FilesIdentity


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept."""

    keep_s: float = 30 * 86400.0
    """Rows of the journal, and logs of engines that have ended."""
    keep_logs: int = 200
    """At most so many logs of engines that have ended, the latest ones."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model, and what its runtime has to know of it."""

    model: Model
    runtime: str
    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The runtime's own settings, under its own names."""
    max_num_seqs: int | None = None
    """Requests that one of its engines works on at a time; None: it does not say."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """What the runtime itself is started with, as configured: "environment", where it is
    installed, and "env", its variables, where one server has several engines."""
    files: FilesIdentity = field(default_factory=FilesIdentity, compare=False)
    """The files at `path`, as they were before they were analysed."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long things may take before they count as failed."""

    load_s: float = 900.0
    sleep_s: float = 120.0
    wake_s: float = 300.0
    stop_grace_s: float = 10.0
    """An engine that was told to end has this long before it is killed."""
    memory_back_s: float = 10.0
    """After an engine has gone, its memory must be seen free within this time."""
    probe_every_s: float = 10.0
    """How often each ready engine is looked at."""
    stall_s: float = 120.0
    """An engine whose requests all got nothing for this long is looked at closely."""
    shutdown_s: float = 30.0
    """Requests in flight may take this long to end at shutdown."""


@dataclass(frozen=True)
class LiveInput:
    """What is served on what, but for the policy."""

    nodes: list[Node]
    gpus: list[Gpu]
    devices: Mapping[str, int]
    """Where each GPU is in the inventory."""
    served: list[Served]
    work: Work
    facts: ConfiguredFacts = field(default_factory=ConfiguredFacts)
    limits: Limits = field(default_factory=Limits)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
    patience: Patience = field(default_factory=Patience)
    deadlines: Deadlines = field(default_factory=Deadlines)
    retention: Retention = field(default_factory=Retention)
    host_memory: Callable[[], HostMemory] | None = None
    """Reads the machine's RAM; None: that of `nodes` is believed (where GPUs are simulated)."""
    host_reserve_bytes: int = 0
    """RAM that sleeping engines leave free."""
    share: float = 1.0
    """Of each GPU's memory that models may use."""
    renew: Callable[[str], Served] | None = None
    """Analyses the files of a model anew, in a thread. Raises ModeliumError."""
