"""What a simulation is told about engines and the cluster, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from modelium.catalog.serving import DEFAULT_BATCH
from modelium.control.rules import Limits


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step of a continuous-batching engine: two coefficient sets, one hinge each.

    D: decoding sequences; K: sum of their context lengths, the token at hand included;
    T: all tokens of the step; S: sequences that prefill in it; for each of those, c tokens are
    computed on top of x tokens that its context already has.

    decode only: `c + lo*min(D, hinge) + hi*max(D - hinge, 0) + kv*K`, and for each of the bends
    `change*max(D - at, 0)`
    mixed: `c + lo*min(T, hinge) + hi*max(T - hinge, 0) + decode*D + prefill*S + kv*K
    + ctx*sum(c*x) + sq*sum(c*c)`
    """

    decode_c: float
    decode_lo: float
    decode_hi: float
    decode_hinge: int
    decode_kv: float
    mixed_c: float
    mixed_lo: float
    mixed_hi: float
    mixed_hinge: int
    mixed_decode: float = 0.0
    mixed_prefill: float = 0.0
    mixed_kv: float = 0.0
    mixed_ctx: float = 0.0
    mixed_sq: float = 0.0
    interference: float = 0.0
    """Extra slow-down per further busy instance on the GPU, on top of fair time sharing."""
    decode_bends: tuple[tuple[int, float], ...] = ()
    """Further bends of decode-only steps: (D, change of slope there). A mixture of experts needs
    them most: up to some batch size each sequence more brings experts more."""


@dataclass(frozen=True, slots=True)
class Generate:
    """A continuous-batching engine as vLLM V1: token budget, chunked prefill, KV blocks."""

    step: StepTime
    kv_tokens: int
    """Tokens that the KV pool holds."""
    max_num_seqs: int = DEFAULT_BATCH.max_num_seqs
    max_batched_tokens: int = DEFAULT_BATCH.max_num_batched_tokens
    block_tokens: int = 16
    prefix_caching: bool = True
    watermark_blocks: int = 0
    """KV blocks left free by admissions beside running requests (vLLM: `watermark`)."""
    max_model_len: int | None = None
    """Longest prompt and output together; `vllm serve` answers 400 to more. None: no limit."""


@dataclass(frozen=True, slots=True)
class Infer:
    """An engine that answers whole batches, with dynamic batching and pipeline stages.

    A batch of b items with w tokens of work in all takes `latency_s[k][b-1] + per_token_s*w` in
    stage k. Stages overlap: the next batch enters a stage as soon as that is free.
    """

    latency_s: tuple[tuple[float, ...], ...]
    """[stage][batch size - 1]; the largest batch is the length of a row."""
    per_token_s: float = 0.0
    max_delay_s: float = 0.0
    """How long an incomplete batch waits for more."""
    servers: int = 1
    """Batches at a time (Triton's instance group count), each at full speed."""
    exclusive: bool = True
    """Instances on the same GPUs take turns, first come first served; else they share time."""
    fixed_s: float = 0.0
    """Added to each answer without occupying the GPU (network, serialisation)."""
    interference: float = 0.0


Engine = Generate | Infer


@dataclass(frozen=True, slots=True)
class Admission:
    """Which requests are turned away on arrival."""

    queue_limit: int = 1_000_000_000
    """At most this many requests wait (per instance; for a model with none ready: in all)."""
    deadline: bool = False
    """Reject when the predicted finish misses the request's SLO."""
    absent: str = "wait"
    """A request of a model with no ready instance: "wait" or "reject"."""
    max_wait_s: float = float("inf")
    """A request that waited this long for an instance is rejected."""


@dataclass(frozen=True, slots=True)
class FaultAt:
    """One fault: `kind` at `at_s` on `target`; `for_s` until it is mended."""

    at_s: float
    kind: str
    """gpu_lost, node_lost, crash (the busiest instance, of a model), load_fails, load_slow."""
    target: str = ""
    for_s: float = float("inf")
    factor: float = 1.0
    """load_slow: how many times as long."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults by schedule and by rate (mean time between, exponential, per GPU or instance)."""

    schedule: tuple[FaultAt, ...] = ()
    gpu_mtbf_s: float = float("inf")
    gpu_repair_s: float = 3600.0
    crash_mtbf_s: float = float("inf")
    load_failure: float = 0.0
    """Probability that a load fails."""
    slow_load: float = 0.0
    """Probability that a load is slow."""
    slow_factor: float = 5.0
    retries: int = 1
    """How often a request on a lost instance is sent again before it fails."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the simulated cluster behaves, whatever the policy."""

    router: str = "least_outstanding"
    """least_outstanding, round_robin, shortest_queue, session_affinity."""
    admission: Admission = Admission()
    faults: Faults = Faults()
    limits: Limits = Limits()
    rate_window_s: float = 60.0
    """Time constant of the demand rates that policies see."""
    drain_s: float = 3600.0
    """After the last arrival, the run ends when all is answered, at the latest this much later."""
    charge_decide: bool = False
    """Delay actions by the time that `decide` really took (not reproducible to the byte)."""
    prepared: bool = True
    """What a policy loads at time 0 is there at once: the cluster was set up before the trace."""
    host_cache: bool = True
    """Loads leave a copy of the weights in host RAM while there is room."""
    bins: int = 480
    """Resolution of busy shares in the timeline."""
