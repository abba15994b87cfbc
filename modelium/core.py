"""The nouns of Modelium and the one question that a policy answers.

Read this file first. A *cluster* (simulated or live) keeps a `ClusterState` and tells a *policy*
what happened (`Event`); the policy answers with what to do about it (`Action`). `drive` is the
control loop; a live cluster has the same one, which also finds long plans in a thread. Seconds are
floats, bytes are ints, `kv` is a language model's key-value cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol, cast


class Phase(StrEnum):
    """Where an instance is in its life; SUSPENDING and LEAVING ones only finish what they have."""

    LOADING = "loading"
    READY = "ready"
    SUSPENDING = "suspending"
    ASLEEP = "asleep"
    WAKING = "waking"
    LEAVING = "leaving"


COMING = (Phase.LOADING, Phase.WAKING)
"""On its way to serve."""
AWAKE = (Phase.LOADING, Phase.READY, Phase.WAKING)
"""Serves, or is on its way to."""
GOING = (Phase.SUSPENDING, Phase.LEAVING)
"""Takes no more requests."""


class Tier(StrEnum):
    """Where a model's weights are on a node; loads start from the best of them."""

    GPU = "gpu"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must meet to count as good; `inf` means no such limit."""

    ttft_s: float = float("inf")
    """Arrival to first token, queueing and loading included."""
    tpot_s: float = float("inf")
    """Mean time between tokens after the first."""
    e2e_s: float = float("inf")
    """Arrival to last token."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is served, and what one loaded copy of it needs."""

    name: str
    weights_bytes: int
    """Of a whole copy, over all its GPUs."""
    kv_bytes: int = 0
    """KV pool that a copy reserves when loaded, over all its GPUs (vLLM takes it all at once)."""
    kv_bytes_per_token: int = 0
    overhead_bytes: int = 0
    """On each GPU: context, activations, captured graphs."""
    asleep_bytes: int = 0
    """On each GPU while asleep: what the process keeps."""
    gpus: int = 1
    """Tensor-parallel size (times pipeline stages): GPUs of one copy, all on one node."""
    slo: Slo = Slo()
    pinned: bool = False
    """Never unloaded or put to sleep by a policy; loaded at the start."""
    min_replicas: int = 0
    max_replicas: int = 1_000_000
    spread: bool = False
    """At most one copy per node (anti-affinity)."""
    can_sleep: bool = True
    """What runs it can put it to sleep (Triton and Ray Serve cannot): else it is only unloaded."""
    gpus_allowed: frozenset[str] | None = None
    """The only GPUs that a copy may be on; None: all."""
    family: str = "llm"
    """Key of the timing profile: what this model computes, e.g. "llama-3.1-8b"."""

    def may_use(self, gpu: str) -> bool:
        """Whether a copy may be on this GPU."""
        return self.gpus_allowed is None or gpu in self.gpus_allowed

    def bytes_per_gpu(self, kv_bytes: int | None = None) -> int:
        """Bytes that a loaded copy holds on each of its GPUs, with a KV pool of `kv_bytes`."""
        kv = self.kv_bytes if kv_bytes is None else kv_bytes
        return -(-(self.weights_bytes + kv) // self.gpus) + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: its RAM keeps copies of weights, its links are shared by concurrent loads."""

    id: str
    host_bytes: int = 0
    """RAM for cached and sleeping weights."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator."""

    id: str
    node: str
    memory_bytes: int
    """What Modelium may use: capacity times the allowed share, less what others hold."""
    kind: str = ""
    """Name in the catalogue, e.g. "h100-80g"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows, whatever the policy."""

    loads_at_once: int = 1_000_000
    """Loads and wakes under way in the whole cluster."""
    loads_at_once_per_gpu: int = 1
    """vLLM sizes its KV pool from free memory: two loads on one GPU would disturb each other."""
    min_residency_s: float = 0.0
    """An instance stays at least this long after it became ready."""


class Instance(Protocol):
    """One loaded copy of a model on a set of GPUs; a live, read-only view. Also called a copy."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def gpus(self) -> tuple[str, ...]: ...
    @property
    def phase(self) -> Phase: ...
    @property
    def sleep_level(self) -> int:
        """1: weights in host RAM; 2: weights dropped; 0: not asleep."""

    @property
    def running(self) -> int: ...  # requests that the engine works on
    @property
    def waiting(self) -> int: ...  # requests queued at this instance
    @property
    def served(self) -> int: ...  # requests ever sent to this instance
    @property
    def last_used_s(self) -> float:
        """When a request was last sent here; when it became ready, if none ever was."""

    @property
    def idle_since_s(self) -> float:
        """When its last request ended; when it became ready, if none ever did."""

    @property
    def ready_since_s(self) -> float: ...  # when it last became ready; `inf` before that
    @property
    def bytes_per_gpu(self) -> int: ...  # what it holds on each of its GPUs now
    @property
    def awake_bytes_per_gpu(self) -> int:
        """What it holds on each of its GPUs when loaded or woken, with the KV pool it was given."""

    @property
    def host_bytes(self) -> int: ...  # what it holds in its node's RAM now (asleep at level 1)
    @property
    def busy(self) -> bool: ...  # it has a request, running or waiting


class Demand(Protocol):
    """What users asked of one model so far; a live, read-only view."""

    @property
    def arrivals(self) -> int: ...
    @property
    def waiting(self) -> int:
        """Requests that wait because no instance is ready (not those queued at instances)."""

    @property
    def oldest_wait_s(self) -> float:
        """How long the first of those has waited; 0 if none does."""

    @property
    def last_arrival_s(self) -> float: ...  # `-inf` before the first
    @property
    def request_rate_per_s(self) -> float:
        """Exponentially weighted arrival rate (time constant: the cluster's `rate_window_s`)."""

    @property
    def prompt_tokens(self) -> int: ...  # sum over all arrivals
    @property
    def output_tokens(self) -> int: ...  # the same (live: over completed ones)


class Costs(Protocol):
    """What changes would take from the present state; the one place where policies read costs."""

    def load_s(self, model: str, gpus: tuple[str, ...]) -> float:
        """Seconds to load `model` on `gpus` from its present tier, on otherwise idle links."""

    def wake_s(self, instance: str) -> float: ...
    def sleep_s(self, instance: str, level: int) -> float: ...
    def unload_s(self, instance: str) -> float: ...
    def work_s(self, model: str, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that such a request takes of each of the copy's GPUs at a good batch size."""


class ClusterState(Protocol):
    """Everything that a policy may know; live and read-only, cheap to read."""

    @property
    def now_s(self) -> float: ...  # the only clock that a policy may read
    @property
    def models(self) -> Mapping[str, Model]: ...
    @property
    def nodes(self) -> Mapping[str, Node]: ...
    @property
    def gpus(self) -> Mapping[str, Gpu]: ...  # those that work now; a lost one is absent
    @property
    def instances(self) -> Mapping[str, Instance]: ...  # as they came, the oldest first
    @property
    def demand(self) -> Mapping[str, Demand]: ...
    @property
    def costs(self) -> Costs: ...
    @property
    def limits(self) -> Limits: ...
    def instances_of(self, model: str) -> Iterable[Instance]: ...
    def instances_on(self, gpu: str) -> Iterable[Instance]: ...
    def coming(self) -> Collection[Instance]:
        """The instances that load or wake: few, and so cheaper to read than all."""

    def coming_on(self, gpu: str) -> int: ...  # how many of these are on a GPU
    def free_bytes(self, gpu: str) -> int:
        """Free now and not yet promised to a load; may be negative while a load waits for room."""

    def freeing_bytes(self, gpu: str) -> int:
        """What instances on their way out or to sleep will give back."""

    def rooms(self) -> dict[str, int]: ...  # bytes free or freeing, if a load may begin there
    def host_free_bytes(self, node: str) -> int:
        """Host RAM without what sleeping instances and loads need (cache counts as free)."""

    def tier(self, model: str, node: str) -> Tier:
        """The best place on `node` where the weights are now."""

    def source_tier(self, model: str, node: str) -> Tier:
        """Where a load on `node` would read the weights from: HOST or DISK."""

    def waiting_models(self) -> Iterable[str]:
        """Models with requests that no ready instance can take."""

    def snapshot(self) -> ClusterState:
        """A frozen copy, for a solver in a thread."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load `model` on `gpus`; waits there for memory that earlier actions give back."""

    model: str
    gpus: tuple[str, ...]
    reason: str = ""
    kv_bytes: int | None = None
    """KV pool over all GPUs; None: the model's own."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Drop an idle instance, or with `drain` a busy one once it has finished its requests."""

    instance: str
    reason: str = ""
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    """Free an instance's GPU memory but keep its process: level 1 keeps weights in host RAM."""

    instance: str
    level: int = 1
    reason: str = ""
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """Bring a sleeping instance back on its GPUs; waits there for memory like a load."""

    instance: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """Load a copy of this instance on other `gpus`, then drain and drop this one."""

    instance: str
    gpus: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Remind:
    """Send me a `Tick` at `at_s` (for idle timeouts and prefetches that are exact in time)."""

    at_s: float
    reason: str = ""


Action = Load | Unload | Sleep | Wake | Move | Remind


@dataclass(frozen=True, slots=True)
class Miss:
    """Requests for `model` wait and no ready instance can take them; offered again until served."""

    model: str


@dataclass(frozen=True, slots=True)
class Tick:
    """`every_s` went by, or a `Remind` is due. The first comes at the start of the run."""


CANCELLED = "cancelled: "


def was_cancelled(error: str) -> bool:
    """Whether an action with this error was stopped on purpose: nothing failed."""
    return error.startswith(CANCELLED)


@dataclass(frozen=True, slots=True)
class Done:
    """An action ended; `error` says why it failed or was refused, empty if it succeeded."""

    action: Action
    error: str = ""
    instance: str = ""
    """The instance that the action made or changed."""

    @property
    def cancelled(self) -> bool:
        """A load or wake that was stopped because an operator, or nobody any more, wanted it so."""
        return was_cancelled(self.error)


@dataclass(frozen=True, slots=True)
class Fault:
    """A GPU or an instance was lost (or a GPU came back: `why` says so)."""

    target: str
    why: str


Event = Miss | Tick | Done | Fault


@dataclass(frozen=True, slots=True)
class Outlook:
    """What requests that wait for a model may expect, as far as the policy can tell now."""

    why: str
    """Whom they wait for, in words; empty if for nobody."""
    left_s: float | None = None
    """Seconds until an instance should be ready; None: nobody can tell."""


class Policy(Protocol):
    """Decides loads, unloads, sleeps and wakes. The only thing that people swap.

    All else that a policy may say of itself is optional: attributes as in `Traits`, the methods of
    `Planner`, and `outlook` as in `Foreteller`.
    """

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Answer `event` with actions, in order. Read time from `state.now_s` only."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a policy says of itself by attributes of these names, of its class or its own."""

    every_s: float | None = None
    """The period of its ticks; None: it only gets the first, and those that it asks for."""
    answers_misses: bool = True
    """It is told of requests that wait (`Miss`), again until they are served."""
    sleeps: bool = True
    """It may put instances to sleep. Where it never does, engines start without what that needs."""
    wants_trace: bool = False
    """It is made with the future: the keyword `future`, arrival times in seconds by model."""


def traits(policy: object) -> Traits:
    """What a policy, or its class, says of itself; the defaults for what it does not."""
    said = {f.name: getattr(policy, f.name) for f in fields(Traits) if hasattr(policy, f.name)}
    return Traits(**said)


class Foreteller(Policy, Protocol):
    """A policy that can tell what requests which wait may expect."""

    def outlook(self, state: ClusterState, model: str) -> Outlook | None:
        """Tell it, and change nothing: `modelium explain` and `Retry-After` say it."""


class Planner(Policy, Protocol):
    """A policy whose plans take long to find: a live cluster searches them in a thread.

    `decide` at a `Tick` is `adopt(state, pose(state)())`; live, other events come in between.
    """

    def pose(self, state: ClusterState) -> Callable[[], Any] | None:
        """Return the search for the next plan, which reads and changes nothing else, if due."""

    def adopt(self, state: ClusterState, thought: Any) -> Iterable[Action]:
        """Follow the plan that the search found; `state` may have moved on since."""


def as_planner(policy: Policy) -> Planner | None:
    """The policy, if its plans may be searched for in a thread."""
    return cast("Planner", policy) if hasattr(policy, "pose") else None


def as_foreteller(policy: Policy) -> Foreteller | None:
    """The policy, if it can tell what to expect."""
    return cast("Foreteller", policy) if hasattr(policy, "outlook") else None


class Cluster(Protocol):
    """A simulated or a live cluster."""

    @property
    def state(self) -> ClusterState: ...
    def start(self, action: Action) -> None:
        """Begin `action` and return at once; `Done` follows, also when it is refused."""

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` of every event from now on."""


@dataclass(slots=True)
class Decision:
    """One line of the decision log: an action, why, and how it ended."""

    at_s: float
    kind: str
    model: str
    instance: str
    gpus: tuple[str, ...]
    reason: str
    end_s: float = float("nan")
    error: str = ""
    tier: str = ""
    """Loads and wakes: where the weights came from ("host", "disk", "sleep-1", "sleep-2")."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage of a load or wake."""


def drive(cluster: Cluster, policy: Policy) -> None:
    """Let `policy` run `cluster`: the whole of Modelium's control loop."""

    def hear(event: Event) -> None:
        # Materialised first: a generator would see the state change under its feet.
        for action in tuple(policy.decide(cluster.state, event)):
            cluster.start(action)

    cluster.listen(hear)
