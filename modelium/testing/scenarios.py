"""Small worlds in which policies are watched: each has something that a careless one gets wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

from modelium.core import Gpu, Limits, Model, Node
from modelium.testing.fake import FakeCluster
from modelium.units import GIB

PATIENT_S = 20_000.0
"""How long after the last request everything must have been answered."""


@dataclass(frozen=True)
class Scenario:
    """A cluster, what is asked of it, and what happens to it."""

    name: str
    models: tuple[Model, ...]
    gpus: tuple[Gpu, ...]
    nodes: tuple[Node, ...]
    limits: Limits = field(default_factory=Limits)
    requests: int = 60
    gap_s: float = 6.0
    """Mean time between requests."""
    lost: tuple[tuple[float, float, str], ...] = ()
    """(from, until, GPU): when which GPU does not work."""
    service_s: float = 3.0
    slots: int = 1
    """Requests that an instance serves at a time."""
    busy: tuple[str, ...] = ()
    """Models that are asked so often that a copy, once it is there, never falls idle by itself."""
    most_wait_s: float = float("inf")
    """How long a request may wait for an instance."""
    passes_s: float = 0.0
    """The most that the clock goes on whenever it is read."""

    def cluster(self) -> FakeCluster:
        """Make the cluster, before anything happened."""
        return FakeCluster(
            self.models,
            self.gpus,
            self.nodes,
            limits=self.limits,
            service_s=self.service_s,
            slots=self.slots,
            passes_s=self.passes_s,
        )

    def happen(self, cluster: FakeCluster) -> None:
        """Let everything happen, and wait until all must be answered."""
        rng = random.Random(self.name)
        at_s = 0.0
        for _ in range(self.requests):
            at_s += rng.expovariate(1 / self.gap_s)
            model = rng.choice(self.models).name
            cluster.at(at_s, partial(cluster.submit, model))
        for name in self.busy:
            for k in range(int(at_s / (self.service_s / 2))):
                cluster.at(k * self.service_s / 2, partial(cluster.submit, name))
        for since_s, until_s, gpu in self.lost:
            cluster.at(since_s, partial(cluster.lose, gpu))
            cluster.at(until_s, partial(cluster.regain, gpu))
        cluster.run_until(at_s + PATIENT_S)


def nodes_of(
    *gpus: int, memory_gib: int = 80, host_gib: int = 100
) -> tuple[tuple[Gpu, ...], tuple[Node, ...]]:
    """Nodes n0, n1, ... with so many GPUs each."""
    nodes = tuple(Node(f"n{i}", host_gib * GIB) for i in range(len(gpus)))
    return tuple(
        Gpu(f"n{i}g{k}", f"n{i}", memory_gib * GIB) for i, n in enumerate(gpus) for k in range(n)
    ), nodes


def model(name: str, weights_gib: int, **more: object) -> Model:
    """A model with 8 GiB of KV cache and 2 GiB left on each GPU while it sleeps."""
    spec = {"kv_bytes": 8 * GIB, "asleep_bytes": 2 * GIB, **more}
    return Model(name, weights_gib * GIB, **spec)  # type: ignore[arg-type]


OVERLAP = {"service_s": 40.0, "slots": 4, "gap_s": 600.0, "requests": 10, "most_wait_s": 3000.0}
"""Some two hours of requests that overlap, and among them some for models that are rarely asked."""

SCENARIOS = (
    Scenario("one GPU, one model at a time", (model("a", 60), model("b", 60)), *nodes_of(1)),
    Scenario(
        "two GPUs, six models of different sizes",
        tuple(model(name, 10 * k) for k, name in enumerate("abcdef", 1)),
        *nodes_of(2),
    ),
    Scenario(
        "two nodes, tensor parallel, pinned, replicas",
        (
            model("pair", 100, gpus=2),
            model("pinned", 20, pinned=True),
            model("twice", 16, min_replicas=2, spread=True),
            model("large", 50),
            model("once", 30, max_replicas=1),
            model("small", 7),
        ),
        *nodes_of(2, 2),
        limits=Limits(loads_at_once=2),
    ),
    Scenario(
        "copies stay for a while, loads one at a time",
        (model("a", 60), model("b", 50), model("c", 40), model("d", 30)),
        *nodes_of(1, 1),
        limits=Limits(loads_at_once=1, min_residency_s=90.0),
    ),
    Scenario(
        "a GPU is lost and comes back",
        (model("a", 60), model("b", 50), model("c", 40), model("pinned", 10, pinned=True)),
        *nodes_of(2),
        lost=((60.0, 200.0, "n0g0"), (250.0, 300.0, "n0g1")),
    ),
    Scenario(
        "some models may use some GPUs only",
        (
            model("a", 60, gpus_allowed=frozenset({"n0g0"})),
            model("right", 50, gpus_allowed=frozenset({"n0g1", "n1g0"})),
            model("pair", 100, gpus=2, gpus_allowed=frozenset({"n1g0", "n1g1"})),
            model("pinned", 10, pinned=True, gpus_allowed=frozenset({"n1g1"})),
            model("anywhere", 40),
            model("too", 60),
        ),
        *nodes_of(2, 2),
        lost=((60.0, 200.0, "n0g0"),),
    ),
    Scenario(
        "little host memory",
        (model("a", 60), model("b", 50), model("c", 40)),
        *nodes_of(1, host_gib=45),
    ),
    Scenario(
        "one GPU, a model that is always busy, and others",
        (model("busy", 60), model("a", 60), model("b", 50)),
        *nodes_of(1),
        busy=("busy",),
        **OVERLAP,  # type: ignore[arg-type]
    ),
    Scenario(
        "the same while the clock goes on, as it does live",
        (model("busy", 60), model("a", 60), model("b", 50)),
        *nodes_of(1),
        busy=("busy",),
        passes_s=1e-4,
        **OVERLAP,  # type: ignore[arg-type]
    ),
    Scenario(
        "two GPUs, three models that are always busy, and one that needs both GPUs",
        (model("a", 60), model("b", 60), model("c", 60), model("pair", 120, gpus=2)),
        *nodes_of(2),
        busy=("a", "b", "c"),
        **OVERLAP,  # type: ignore[arg-type]
    ),
)
