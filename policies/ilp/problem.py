"""What a placement is chosen from, and the choice, in whole numbers.

Values and costs are whole *micro-requests* (1e-6 of a request that would be late), memory is whole
MiB per GPU, compute is thousandths of a GPU's time, and a model's demand is served in thousandths:
every coefficient of the programme is an integer, so its optimum is exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import combinations
from math import comb

PARTS = 1000
"""A model's demand is divided into this many equal parts."""
MICRO = 1_000_000
"""Values are in millionths of a request."""
MAX_GROUPS = 100
"""Above this many GPU groups on a node, only aligned ones are considered (0-3, 4-7 and so on)."""


class Fate(StrEnum):
    """What becomes of a copy that exists."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Room:
    """One GPU."""

    gpu: str
    node: str
    memory_mib: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    """One model: what a new copy takes and what its being there is worth."""

    model: str
    fixed_mib: int
    """Weights and overhead of a new copy, on each of its GPUs."""
    gpus: int = 1
    kv_min_mib: int = 0
    """Smallest KV pool of a new copy, on each of its GPUs."""
    kv_full_mib: int = 0
    """KV pool that serving the whole demand takes, on each GPU."""
    ready_value: int = 0
    """Of having a ready copy rather than none, in micro-requests."""
    asleep_value: int = 0
    """Of having a sleeping copy and no ready one, rather than none."""
    part_value: int = 0
    """Of serving one part (1/`PARTS`) of the demand at once."""
    work: Mapping[str, int] = field(default_factory=dict)
    """By GPU kind: busy thousandths of each GPU of a copy that serves the whole demand."""
    load_cost: Mapping[str, int] = field(default_factory=dict)
    """By node: of loading a new copy there, from the tier where the weights are."""
    least: int = 0
    most: int = 1_000_000
    spread: bool = False
    """At most one copy per node."""
    allowed: frozenset[str] | None = None
    """The only GPUs that a new copy may take; None: all."""

    def may_use(self, gpu: str) -> bool:
        """Whether a new copy may take this GPU."""
        return self.allowed is None or gpu in self.allowed


@dataclass(frozen=True, slots=True)
class Held:
    """One copy that exists, and the fates that are open to it, each with its cost."""

    id: str
    model: str
    gpus: tuple[str, ...]
    now: Fate
    fates: Mapping[Fate, int]
    awake_mib: int = 0
    """On each of its GPUs."""
    asleep_mib: int = 0
    host_mib: int = 0
    """What it takes of its node's RAM while asleep."""
    kv_mib: int = 0
    """KV pool on each GPU, part of `awake_mib`."""

    def mib(self, fate: Fate) -> int:
        """What it takes on each of its GPUs."""
        return {Fate.AWAKE: self.awake_mib, Fate.ASLEEP: self.asleep_mib}.get(fate, 0)


@dataclass(frozen=True)
class Problem:
    """Everything that a placement is chosen from."""

    rooms: tuple[Room, ...]
    wants: tuple[Want, ...]
    held: tuple[Held, ...] = ()
    host_mib: Mapping[str, int] = field(default_factory=dict)
    """By node: RAM for sleeping copies, the present ones included."""
    busy_max: int = 800
    """Busy thousandths that a GPU may reach."""
    overload_cost: int = 0
    """Of each busy thousandth above that, in micro-requests."""

    @cached_property
    def room(self) -> Mapping[str, Room]:
        """The GPUs by name."""
        return {room.gpu: room for room in self.rooms}

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The nodes, in order."""
        return tuple(dict.fromkeys(room.node for room in self.rooms))

    def node(self, *gpus: str) -> str:
        """The node of a group of GPUs."""
        return self.room[gpus[0]].node

    def held_of(self, model: str) -> list[Held]:
        """The copies that exist of `model`."""
        return self._by_model.get(model, [])

    def usable_mib(self, room: Room) -> int:
        """A GPU's memory; what is there now fits, although each copy is rounded up."""
        return max(room.memory_mib, sum(c.mib(c.now) for c in self.held if room.gpu in c.gpus))

    def usable_host_mib(self, node: str) -> int:
        """A node's RAM for sleeping copies; those that sleep now fit."""
        now = [c for c in self.held if c.now is Fate.ASLEEP and self.node(*c.gpus) == node]
        return max(self.host_mib.get(node, 0), sum(copy.host_mib for copy in now))

    def light(self, want: Want) -> bool:
        """One copy serves all of this demand, with at most a quarter of a GPU's time."""
        copies = self.held_of(want.model)
        return (
            4 * max(want.work.values(), default=0) <= self.busy_max
            and want.kv_full_mib <= min([want.kv_min_mib, *(c.kv_mib for c in copies)])
            and max(want.least, len(copies)) <= 1
        )

    @cached_property
    def _by_model(self) -> dict[str, list[Held]]:
        copies: dict[str, list[Held]] = defaultdict(list)
        for copy in self.held:
            copies[copy.model].append(copy)
        return copies


@dataclass(frozen=True, slots=True)
class Placement:
    """The fate of each copy that exists, and the GPUs of each copy to load, by model."""

    fates: Mapping[str, Fate]
    loads: Mapping[str, Sequence[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class New:
    """A copy to load."""

    model: str
    gpus: tuple[str, ...]
    kv_mib: int
    """KV pool on each GPU."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement: the fate of each copy that exists, and the copies to load."""

    fates: Mapping[str, Fate]
    new: tuple[New, ...]
    value: int
    """Micro-requests kept from being late, less the cost of the changes."""
    missing: int
    """Copies that the operator's minima ask for and that find no room; these weigh most."""
    bound: int
    """No placement with as few missing copies has a higher value."""

    def better_than(self, other: Plan) -> bool:
        """It misses fewer required copies, or as few at a higher value."""
        return (-self.missing, self.value) > (-other.missing, other.value)


@dataclass(frozen=True, slots=True)
class Effort:
    """When a solve ends with the best placement so far, and how it is run."""

    work: float = 1.0
    """CP-SAT's deterministic time, about a second of one core; gives the same plan everywhere."""
    time_limit_s: float = float("inf")
    """Wall time; what is found by then depends on the machine."""
    workers: int = 1
    seed: int = 0


def free_gpus(problem: Problem, want: Want) -> dict[str, list[str]]:
    """By node: the GPUs that a new copy may take: allowed, large enough, without a copy yet."""
    taken = {gpu for copy in problem.held_of(want.model) for gpu in copy.gpus}
    by_node: dict[str, list[str]] = defaultdict(list)
    for room in problem.rooms:
        fits = room.memory_mib >= want.fixed_mib + want.kv_min_mib
        if fits and room.gpu not in taken and want.may_use(room.gpu):
            by_node[room.node].append(room.gpu)
    return {node: gpus for node, gpus in by_node.items() if len(gpus) >= want.gpus}


def groups(problem: Problem, want: Want) -> list[tuple[str, ...]]:
    """The groups of GPUs that a new copy may take."""
    found: list[tuple[str, ...]] = []
    for node, gpus in free_gpus(problem, want).items():
        if aligned(problem, want, node):
            starts = range(0, len(gpus) - want.gpus + 1, want.gpus)
            found += [tuple(gpus[i : i + want.gpus]) for i in starts]
        else:
            found += combinations(gpus, want.gpus)
    return found


def aligned(problem: Problem, want: Want, node: str) -> bool:
    """A heavy model has too many groups on this node to consider all of them."""
    n = sum(room.node == node and want.may_use(room.gpu) for room in problem.rooms)
    return comb(n, want.gpus) > MAX_GROUPS and not problem.light(want)
