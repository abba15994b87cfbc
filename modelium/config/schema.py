"""What a configuration file may say. Every section and every key may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from modelium import catalog
from modelium.catalog import fleet_nodes
from modelium.config.live import Emulated, Gateway, Live, Ray, Triton
from modelium.config.planning.profiles import Profiles
from modelium.config.planning.simulation import Simulation
from modelium.config.values import (
    Bounds,
    Bytes,
    BytesPerS,
    Count,
    GpuKind,
    Host,
    Json,
    NotNegative,
    Number,
    Period,
    Port,
    Rate,
    Read,
    Seconds,
    Section,
    Size,
    build,
    said,
)
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.sim import spec


class Slo(Section):
    """Latency limits a request must meet to count as good."""

    ttft: Seconds | None = None
    """Arrival to first token, queueing and loading included."""
    tpot: Seconds | None = None
    """Mean time between tokens after the first."""
    e2e: Seconds | None = None
    """Arrival to last token."""


class Slos(Slo):
    """Default latency limits for all models, and limits for classes of requests."""

    classes: dict[str, Slo] = field(default_factory=dict)
    """By the trace's `slo_class`; takes precedence over the model's own."""


class Links(Section):
    """Bandwidths of a node; concurrent transfers share them."""

    disk: BytesPerS | None = None
    """The drive that weights are read from."""
    pcie: BytesPerS | None = None
    """Host memory to one GPU."""
    gpus_per_switch: Count | None = None
    """GPUs behind one PCIe switch, which share `pcie`."""
    loader: BytesPerS | None = None
    """Best rate that the engine's loader reaches per GPU."""


def _gpu_words(given: Any) -> Any:
    """Take numbers, UUIDs and other names of GPUs, one or a list, as words."""
    items = given if isinstance(given, list) else [given]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ConfigError(f"{item!r:.40} is neither a GPU's number nor its UUID, id or kind")
    return [str(item).strip() for item in items]


GpuWords = Annotated[list[str], Bounds(min_length=1), Read(_gpu_words, int | str | list[int | str])]
"""GPUs by number, UUID or its beginning, id or kind."""


class GpuGroup(Section):
    """Some GPUs of one kind."""

    kind: GpuKind
    """Name in the catalogue, such as h100-80g, or as the driver calls it."""
    count: Count = 1
    memory: Size | None = None
    """Of each, instead of the catalogue's figure."""
    uuid: str | None = None
    """UUID of a single GPU, so that it can be referred to by UUID in simulation, too."""

    def __post_init__(self) -> None:
        if self.uuid is not None and self.count != 1:
            raise ValueError("uuid names one GPU, so count has to be 1")


class FoundGpu(GpuGroup):
    """A GPU that the driver has listed; no file says this."""

    device: int
    """Where it is in the inventory."""
    number: str
    parent: str = ""
    """UUID of the GPU that a MIG instance is a part of."""


class PlacedGroup(GpuGroup):
    """Some GPUs of one kind on one node."""

    node: str = "node0"


def placed(given: Any) -> Any:
    """Take "2x8xh100-80g" as two groups of eight, and a bare kind as a group of one."""
    if isinstance(given, str):
        return [
            {"kind": kind, "count": count, "node": f"node{i}"}
            for i, (count, kind) in enumerate(fleet_nodes(given))
        ]
    if isinstance(given, list):
        return [{"kind": item} if isinstance(item, str) else item for item in given]
    raise ConfigError(f"{given!r} is neither a fleet such as 4xh100-80g nor a list of GPUs")


def _on_one_node(given: Any) -> Any:
    groups = placed(given)
    if isinstance(given, str):
        return [{key: group[key] for key in ("kind", "count")} for group in groups]
    return groups


class NodeEntry(Section):
    """One machine."""

    name: str | None = None
    gpus: Annotated[list[GpuGroup], Read(_on_one_node, str | list[str | GpuGroup])]
    """Such as 4xh100-80g, or a list of kinds or groups; all on this node."""
    host_memory: Bytes | None = None
    """RAM for cached and sleeping weights."""
    links: Links = Links()


class GpuFigures(Section):
    """Figures for one kind of GPU; missing ones come from the catalogue or are estimated."""

    memory: Size | None = None
    """Memory of each GPU."""
    bandwidth: BytesPerS | None = None
    """Memory bandwidth."""
    flops: Rate | None = None
    """Dense 16-bit FLOPS with tensor cores: 312e12, not 312."""
    fp8_flops: Rate | None = None
    """Dense 8-bit FLOPS."""
    pcie: BytesPerS | None = None
    """Host to GPU, one direction, from the data sheet."""
    nvlink: BytesPerS | None = None
    """To the other GPUs of the node, one direction."""


def _kinds(given: Any) -> Any:
    """Take every way of writing a GPU's name as one key."""
    if not isinstance(given, Mapping):
        return given
    written: dict[str, Any] = {}
    for name, figures in given.items():
        kind = catalog.kind_of(str(name))
        if kind in written:
            raise ConfigError(f"{kind!r} is there twice")
        written[kind] = figures
    return written


class Cluster(Section):
    """The available GPUs."""

    gpus: Annotated[list[PlacedGroup], Read(placed, str | list[str | PlacedGroup])] = field(
        default_factory=list
    )
    """4xh100-80g (one node), 2x8xh100-80g+4xl4 (three), or a list of kinds or groups."""
    nodes: list[NodeEntry] = field(default_factory=list)
    """Each machine by itself, instead of `gpus`."""
    kinds: Annotated[dict[str, GpuFigures], Read(_kinds, dict[str, GpuFigures])] = field(
        default_factory=dict
    )
    """Figures for kinds of GPU, by name: extends or overrides the catalogue, also for GPUs that the
    driver lists."""
    host_memory: Bytes | None = None
    """RAM of each node for cached and sleeping weights; live, at most what the machine has."""
    links: Links = Links()
    use: GpuWords | None = None
    """Of these GPUs, the ones that may be used: numbers, UUIDs or their beginnings, ids (gpu0),
    kinds; the others are not touched. [default: all]"""

    def __post_init__(self) -> None:
        if self.gpus and self.nodes:
            raise ValueError("give either gpus or nodes, not both")


class EngineSettings(Section):
    """Settings of vLLM, under vLLM's own names."""

    dtype: Literal["auto", "bfloat16", "float16", "float32", "fp8", "int8", "int4"] | None = None
    """Of the weights: 16 bits unless set or known to be otherwise."""
    max_model_len: Count | None = None
    """Longest context; bounds the KV pool that a copy reserves."""
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    block_size: Count | None = None
    enable_prefix_caching: bool | None = None

    def under(self, other: EngineSettings) -> EngineSettings:
        """These settings, except where `other` has its own."""
        return replace(self, **said(other))

    def engine(
        self, step: spec.StepTime, kv_tokens: int, context: int | None = None
    ) -> spec.Generate:
        """The engine with these settings, as the simulator takes it.

        `context` is the model's own, where nothing shorter is set.
        """
        from modelium.sim import spec

        given: dict[str, Any] = {
            "max_num_seqs": self.max_num_seqs,
            "max_batched_tokens": self.max_num_batched_tokens,
            "block_tokens": self.block_size,
            "prefix_caching": self.enable_prefix_caching,
            "max_model_len": context if self.max_model_len is None else self.max_model_len,
        }
        return spec.Generate(
            step, kv_tokens, **{key: value for key, value in given.items() if value is not None}
        )


class Vllm(Section):
    """How language models are served."""

    enabled: bool = True
    base_port: Port = 8000
    """First port of the engines (live)."""
    sleep_mode: bool | None = None
    """Start engines with sleep mode; by default, if the policy may use it (live)."""
    default_settings: EngineSettings = EngineSettings()
    environment: str | None = None
    """Python environment that has vLLM; otherwise searched for (live)."""
    flags: list[str] = field(default_factory=list)
    """Further arguments of `vllm serve`, for all models (live)."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of all engines (live)."""


def _stages(given: Any) -> Any:
    """Take one row of latencies as a pipeline of one stage."""
    flat = isinstance(given, list) and not any(isinstance(row, list) for row in given)
    return [given] if flat else given


class Infer(Section):
    """A model that returns whole results in batches (Triton), rather than token by token."""

    latency: Annotated[list[list[Seconds]], Read(_stages, list[Seconds] | list[list[Seconds]])]
    """By batch size 1, 2, ...; a list of such lists for the stages of a pipeline."""
    per_token: Seconds = 0.0
    """Added per token (or unit of work) in the batch."""
    max_delay: Seconds = 0.0
    """How long an incomplete batch waits for more requests."""
    servers: Count = 1
    """Concurrent batches (Triton's instance group)."""
    exclusive: bool = True
    """Instances on the same GPUs take turns instead of sharing time."""
    fixed: Seconds = 0.0
    """Added to each answer without occupying the GPU."""

    def engine(self) -> spec.Infer:
        """As the simulator takes it."""
        from modelium.sim import spec

        rows = tuple(tuple(row) for row in self.latency)
        return build(spec.Infer(rows), self, ignore=("latency",))


class LoadStages(Section):
    """Durations of a load, wake, sleep or unload, apart from transferring weights."""

    process: Seconds | None = None
    tokenizer: Seconds | None = None
    compile: Seconds | None = None
    first_compile: Seconds | None = None
    profile: Seconds | None = None
    graphs: Seconds | None = None
    wake: tuple[Seconds, Seconds] | None = None
    """From sleep level 1 and 2."""
    sleep: tuple[Seconds, Seconds] | None = None
    unload: Seconds | None = None


class ModelEntry(Section):
    """One model; missing values come from the catalogue or the model's folder."""

    catalogue: str | None = None
    """Name in the catalogue, if it is not the model's own."""
    path: str | None = None
    """Folder with the model's files, relative to `model_repository`; analysed, never loaded."""
    gpus: Count | None = None
    """Tensor-parallel size."""
    weights: Bytes | None = None
    """Of a whole copy."""
    kv: Bytes | None = None
    """KV pool that a copy reserves, over all its GPUs."""
    kv_per_token: Bytes | None = None
    overhead: Bytes | None = None
    """On each GPU: context, activations, captured graphs."""
    asleep: Bytes | None = None
    """On each GPU while asleep."""
    slo: Slo = Slo()
    pinned: bool = False
    """Loaded at the start and never unloaded."""
    min_replicas: Number = 0
    max_replicas: Count | None = None
    spread: bool = False
    """At most one copy per node."""
    gpus_allowed: GpuWords | None = None
    """The only GPUs that a copy may be on: numbers, UUIDs or their beginnings, ids (gpu0), kinds.
    [default: all]"""
    vllm: EngineSettings = EngineSettings()
    infer: Infer | None = None
    load: LoadStages = LoadStages()
    runtime: Literal["vllm", "triton", "ray", "emulated"] | None = None
    """Runtime that serves it (live); otherwise chosen from its files."""
    flags: list[str] = field(default_factory=list)
    """Additional engine arguments (live)."""
    env: dict[str, str] = field(default_factory=dict)
    """Additional environment variables of its engine (live)."""
    settings: dict[str, Json] = field(default_factory=dict)
    """Additional runtime settings, under the runtime's own names (live)."""


class NamedModel(ModelEntry):
    """One model in a list of models."""

    name: str


def _by_name(given: Any) -> Any:
    """Take a list of names or of mappings with a `name` as a mapping by name."""
    if isinstance(given, Mapping):
        return {name: _entry(value) for name, value in given.items()}
    if not isinstance(given, list):
        return given
    named: dict[str, Any] = {}
    for i, item in enumerate(given):
        entry = dict(item) if isinstance(item, Mapping) else {"name": item}
        name = entry.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"entry {i} is {item!r:.40}, expected a name, or keys with a name")
        if name in named:
            raise ConfigError(f"{name!r} is there twice")
        named[name] = entry
    return named


def _entry(value: Any) -> Any:
    return {} if value is None else {"catalogue": value} if isinstance(value, str) else value


Models = Annotated[
    dict[str, ModelEntry],
    Read(_by_name, dict[str, ModelEntry | str | None] | list[str | NamedModel]),
]


class Orchestration(Section):
    """Defaults for policies, unless the command line says otherwise."""

    auto_unload_after_seconds: Seconds | None = None
    """idle_ttl: an instance that was idle this long is unloaded."""
    min_qps_threshold: NotNegative | None = None
    """idle_ttl: a model with at least this request rate stays."""
    decision_interval_seconds: Period | None = None
    """How often policies are asked when nothing else happens."""
    max_gpu_memory_utilization: Annotated[float, Bounds(gt=0, le=1)] | None = None
    """Share of each GPU's memory that models may use."""
    always_loaded: list[str] = field(default_factory=list)
    """Models that are loaded at the start and never unloaded."""


class Metrics(Section):
    """Prometheus metrics (live)."""

    enabled: bool = True
    host: Host = "127.0.0.1"
    """Address to serve them on; there is no access control."""
    port: Port = 9090


class PolicyEntry(Section):
    """A policy with its parameters."""

    name: str
    parameters: dict[str, float | bool | str] = field(default_factory=dict)


def _policies(given: Any) -> Any:
    """Take one policy as a list of one, and a mapping in the command line's way of writing it."""
    items = given if isinstance(given, list) else [given]
    return [_written(item) if isinstance(item, Mapping) else item for item in items]


def _written(item: Mapping[str, Any]) -> str:
    entry = PolicyEntry.of(item)
    parameters = ",".join(f"{key}={value}" for key, value in entry.parameters.items())
    return f"{entry.name}:{parameters}" if parameters else entry.name


Policies = Annotated[list[str], Read(_policies, str | PolicyEntry | list[str | PolicyEntry])]


class Config(Section):
    """A whole file."""

    model_repository: str | None = None
    """Folder that contains the model folders. [default: the working folder]"""
    cluster: Cluster = Cluster()
    models: Models = field(default_factory=dict)
    load: LoadStages = LoadStages()
    """Load times for all models; a model's own `load` takes precedence."""
    profiles: Profiles = field(default_factory=list)
    """Step times measured on your machines: files written by the fit, or entries like theirs."""
    slo: Slos = Slos()
    policy: Policies = field(default_factory=list)
    """Policies to use when the command line names none: "lru" or "idle_ttl:idle_s=60"."""
    simulation: Simulation = Simulation()
    vllm: Vllm = Vllm()
    orchestration: Orchestration = Orchestration()
    metrics: Metrics = Metrics()
    triton: Triton = Triton()
    ray: Ray = Ray()
    emulated: Emulated = Emulated()
    gateway: Gateway = Gateway()
    live: Live = Live()

    @property
    def repository(self) -> Path:
        """The folder that holds the folders of models."""
        return Path(self.model_repository or ".")
