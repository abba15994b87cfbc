"""The books of a cluster: who holds what memory where. Both worlds keep them with this class.

Numbers that change with every request (running, waiting, last use) come from *meters* that each
world keeps its own way: the simulator in the arrays of its compiled engines, the gateway in plain
objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

from modelium.control.host_cache import HostRam
from modelium.core import (
    COMING,
    GOING,
    Costs,
    Demand,
    Gpu,
    Instance,
    Limits,
    Model,
    Node,
    Phase,
    Tier,
)  # fmt: skip

T = TypeVar("T")


class Meters(Protocol):
    """What one instance did; times are seconds."""

    @property
    def busy(self) -> bool: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def served(self) -> int: ...
    @property
    def last_used_s(self) -> float: ...
    @property
    def idle_since_s(self) -> float: ...


@dataclass(slots=True)
class Copy:
    """An `Instance`: the books' entry, with its meters beside it."""

    id: str
    model: str
    gpus: tuple[str, ...]
    node: str
    meters: Meters
    phase: Phase = Phase.LOADING
    sleep_level: int = 0
    bytes_per_gpu: int = 0
    awake_bytes_per_gpu: int = 0
    """0: what it holds when it enters the books; if it enters asleep, its model's own figure."""
    host_bytes: int = 0
    ready_since_s: float = float("inf")
    slot: int = -1
    """The cluster's own handle of this copy."""
    extra_bytes: int = 0
    """Of its KV pool on each GPU, what is above (or below 0: under) its model's usual one."""
    stuck: bool = False
    """It should be gone, but its processes do not end: nobody may count on what it holds."""
    gives_bytes: int = 0
    """Of each GPU, what the books count as given back soon: noted when it was counted, because its
    model's figures may be corrected before it is done."""

    @property
    def running(self) -> int:
        return self.meters.running

    @property
    def waiting(self) -> int:
        return self.meters.waiting

    @property
    def served(self) -> int:
        return self.meters.served

    @property
    def last_used_s(self) -> float:
        return self.meters.last_used_s

    @property
    def idle_since_s(self) -> float:
        return self.meters.idle_since_s

    @property
    def busy(self) -> bool:
        return self.meters.busy


@dataclass(frozen=True, slots=True)
class FrozenMeters:
    """Meters that stopped: for snapshots and tests."""

    running: int = 0
    waiting: int = 0
    served: int = 0
    last_used_s: float = float("-inf")
    idle_since_s: float = float("-inf")

    @property
    def busy(self) -> bool:
        return self.running > 0 or self.waiting > 0


@dataclass(frozen=True, slots=True)
class FrozenDemand:
    """Demand that stopped: for snapshots and tests."""

    arrivals: int = 0
    waiting: int = 0
    oldest_wait_s: float = 0.0
    last_arrival_s: float = float("-inf")
    request_rate_per_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0


class ScopedCosts(Costs, Protocol):
    """Costs that can be read against another state."""

    def for_state(self, state: State) -> Costs: ...


@dataclass
class State:
    """A `ClusterState`. Only its cluster changes it, through the verbs below."""

    models: Mapping[str, Model]
    nodes: Mapping[str, Node]
    all_gpus: Mapping[str, Gpu]
    demand: Mapping[str, Demand]
    clock: Callable[[], float]
    waiting: Callable[[], Iterable[str]]
    """Names of the models with requests that wait for an instance."""
    limits: Limits = field(default_factory=Limits)
    costs: ScopedCosts = field(init=False)
    instances: Mapping[str, Instance] = field(init=False)
    gpus: Mapping[str, Gpu] = field(init=False)
    ram: dict[str, HostRam] = field(init=False)

    def __post_init__(self) -> None:
        self._copies: dict[str, Copy] = {}
        self._coming: dict[str, Copy] = {}
        self._coming_on = dict.fromkeys(self.all_gpus, 0)
        self._taken: set[str] = set()
        """GPUs with as many loads under way as they may have."""
        self._working = dict(self.all_gpus)
        self._of: dict[str, dict[str, Copy]] = {name: {} for name in self.models}
        self._on: dict[str, dict[str, Copy]] = {gpu: {} for gpu in self.all_gpus}
        self._free = {name: gpu.memory_bytes for name, gpu in self.all_gpus.items()}
        self._freeing = dict.fromkeys(self.all_gpus, 0)
        self._rooms = dict(self._free)
        self.ram = {name: HostRam(node.host_bytes) for name, node in self.nodes.items()}
        self.instances = MappingProxyType(self._copies)
        self.gpus = MappingProxyType(self._working)

    # What policies read

    @property
    def now_s(self) -> float:
        return self.clock()

    def instances_of(self, model: str) -> Iterable[Instance]:
        return self._of[model].values()

    def instances_on(self, gpu: str) -> Iterable[Instance]:
        return self._on[gpu].values()

    def coming(self) -> Collection[Instance]:
        return self._coming.values()

    def coming_on(self, gpu: str) -> int:
        return self._coming_on[gpu]

    def free_bytes(self, gpu: str) -> int:
        return self._free[gpu]

    def freeing_bytes(self, gpu: str) -> int:
        return self._freeing[gpu]

    def rooms(self) -> dict[str, int]:
        rooms = self._rooms.copy()
        for gpu in self._taken:
            rooms.pop(gpu, None)
        return rooms

    def host_free_bytes(self, node: str) -> int:
        return self.ram[node].free_bytes

    def tier(self, model: str, node: str) -> Tier:
        for copy in self._of[model].values():
            if copy.node == node and copy.phase is Phase.READY:
                return Tier.GPU
        return self.source_tier(model, node)

    def source_tier(self, model: str, node: str) -> Tier:
        """Where a load on `node` would read the weights from: HOST or DISK."""
        if model in self.ram[node]:
            return Tier.HOST
        for copy in self._of[model].values():
            if copy.host_bytes and copy.node == node:
                return Tier.HOST
        return Tier.DISK

    def waiting_models(self) -> Iterable[str]:
        return self.waiting()

    def snapshot(self) -> State:
        """A frozen copy: the same books, with meters, demand and clock stopped."""
        now_s, waiting = self.now_s, tuple(self.waiting())
        demand = {name: _freeze(FrozenDemand, d) for name, d in self.demand.items()}
        twin = State(
            self.models, self.nodes, self.all_gpus, demand, lambda: now_s, lambda: waiting,
            self.limits,
        )  # fmt: skip
        for copy in self._copies.values():
            twin.add(_still(copy))
        for gpu in self.all_gpus.keys() - self._working.keys():
            twin.lose(gpu)
        twin.ram = {name: ram.copy() for name, ram in self.ram.items()}
        twin.costs = self.costs.for_state(twin)  # type: ignore[assignment]
        return twin

    # What the cluster does

    def add(self, copy: Copy) -> None:
        """Enter a copy and charge what it holds."""
        if not copy.awake_bytes_per_gpu:
            asleep = copy.phase is Phase.ASLEEP
            full = self.models[copy.model].bytes_per_gpu() if asleep else copy.bytes_per_gpu
            copy.awake_bytes_per_gpu = full
        self._copies[copy.id] = copy
        self._of[copy.model][copy.id] = copy
        for gpu in copy.gpus:
            self._on[gpu][copy.id] = copy
        self._note_coming(copy)
        self._charge(copy, 1)

    def remove(self, copy: Copy) -> None:
        """Strike a copy out and give back what it held."""
        self._charge(copy, -1)
        del self._copies[copy.id], self._of[copy.model][copy.id]
        self._note_coming(copy, gone=True)
        for gpu in copy.gpus:
            del self._on[gpu][copy.id]

    def change(
        self,
        copy: Copy,
        phase: Phase,
        *,
        bytes_per_gpu: int | None = None,
        host_bytes: int | None = None,
        sleep_level: int | None = None,
    ) -> None:
        """Put a copy into `phase`, with new holdings where given."""
        self._charge(copy, -1)
        copy.phase = phase
        self._note_coming(copy)
        if bytes_per_gpu is not None:
            copy.bytes_per_gpu = bytes_per_gpu
        if host_bytes is not None:
            copy.host_bytes = host_bytes
        if sleep_level is not None:
            copy.sleep_level = sleep_level
        self._charge(copy, 1)
        if phase is Phase.READY:
            copy.ready_since_s = self.now_s

    def stick(self, copy: Copy) -> None:
        """A copy that is leaving does not go."""
        self._charge(copy, -1)
        copy.stuck = True
        self._charge(copy, 1)

    def put_model(self, model: Model, demand: Demand) -> None:
        """A model is there from now on, or is another one from now on."""
        # New mappings: whoever keeps the old ones sees that something changed.
        self.models = {**self.models, model.name: model}
        self.demand = {**self.demand, model.name: demand}
        self._of.setdefault(model.name, {})

    def drop_model(self, name: str) -> None:
        """A model that has no copies is there no more."""
        self.models = {key: model for key, model in self.models.items() if key != name}
        self.demand = {key: demand for key, demand in self.demand.items() if key != name}
        del self._of[name]

    def resize(self, gpu: str, memory_bytes: int, kind: str | None = None) -> None:
        """Others took memory of a GPU, or gave some back; or it is of another `kind` than said."""
        old = self.all_gpus[gpu]
        new = replace(old, memory_bytes=memory_bytes, kind=old.kind if kind is None else kind)
        self._free[gpu] += memory_bytes - self.all_gpus[gpu].memory_bytes
        self.all_gpus = {name: new if name == gpu else g for name, g in self.all_gpus.items()}
        if gpu in self._working:
            self._working[gpu] = new
            self._rooms[gpu] = self._free[gpu] + self._freeing[gpu]

    def lose(self, gpu: str) -> None:
        """A GPU stopped working."""
        self._working.pop(gpu, None)
        self._rooms.pop(gpu, None)

    def regain(self, gpu: str) -> None:
        """A GPU works again."""
        back = {
            name: g for name, g in self.all_gpus.items() if name in self._working or name == gpu
        }
        self._working.clear()
        self._working.update(back)  # in the order of the configuration, as ever
        self._rooms = {name: self._free[name] + self._freeing[name] for name in back}

    def copy(self, instance: str) -> Copy:
        """The books' own entry of an instance."""
        return self._copies[instance]

    def _note_coming(self, copy: Copy, *, gone: bool = False) -> None:
        comes = copy.phase in COMING and not gone
        if comes == (copy.id in self._coming):
            return
        if comes:
            self._coming[copy.id] = copy
        else:
            del self._coming[copy.id]
        for gpu in copy.gpus:
            self._coming_on[gpu] = number = self._coming_on[gpu] + (1 if comes else -1)
            may_more = number < self.limits.loads_at_once_per_gpu
            (self._taken.discard if may_more else self._taken.add)(gpu)

    def _charge(self, copy: Copy, sign: int) -> None:
        takes = sign * copy.bytes_per_gpu
        if sign > 0:
            copy.gives_bytes = self._gives_back(copy) if copy.phase in GOING else 0
        gives = sign * copy.gives_bytes
        for gpu in copy.gpus:
            self._free[gpu] -= takes
            self._freeing[gpu] += gives
            if gpu in self._rooms:
                self._rooms[gpu] += gives - takes
        if copy.host_bytes:
            self.ram[copy.node].pin(sign * copy.host_bytes)

    def _gives_back(self, copy: Copy) -> int:
        if copy.stuck:
            return 0
        if copy.phase is Phase.LEAVING:
            return copy.bytes_per_gpu
        return max(0, copy.bytes_per_gpu - self.models[copy.model].asleep_bytes)


def _still(copy: Copy) -> Copy:
    return Copy(
        copy.id, copy.model, copy.gpus, copy.node, _freeze(FrozenMeters, copy.meters),
        copy.phase, copy.sleep_level, copy.bytes_per_gpu, copy.awake_bytes_per_gpu,
        copy.host_bytes, copy.ready_since_s,
        copy.slot, copy.extra_bytes, copy.stuck,
    )  # fmt: skip


def _freeze(frozen: type[T], live: object) -> T:
    return frozen(*(getattr(live, name) for name in frozen.__slots__))  # type: ignore[attr-defined]
