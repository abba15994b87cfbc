"""What a loaded copy of a catalogue model needs on a GPU: the defaults of a `core.Model`."""

from __future__ import annotations

from dataclasses import dataclass

from modelium.catalog.fleet import DEFAULT_SHARE
from modelium.catalog.gpus import GpuSpec
from modelium.catalog.models import ModelSpec
from modelium.core import Model, Slo
from modelium.errors import ProfileError
from modelium.units import GIB, MIB, format_bytes

DEFAULT_SLO = Slo(ttft_s=2.0, tpot_s=0.1)
"""MLPerf Inference's limits for Llama-3.1-8B, server scenario."""
DEFAULT_KV_TOKENS = 8 * 4096
"""KV pool of a copy: eight sequences of 4096 tokens. vLLM by itself would take the whole GPU, which
leaves no room for a second model; with `--kv-cache-memory-bytes` it takes what it is told."""
LEAST_KV = 0.25
"""Share of the wanted KV pool below which a copy is spread over more GPUs."""
CONTEXT_BYTES = GIB // 2
"""CUDA context and libraries of one process: 0.3 to 0.8 GB (MuxServe, arXiv 2404.02015)."""
GRAPHS_BYTES = GIB // 2
"""CUDA graphs; vLLM reports 0.3 to 1 GiB for the models here."""
LOGIT_BYTES = 2 + 4 + 4 + 4
"""For each sequence and token of the vocabulary when vLLM samples at its largest batch, which it
tries at its start: logits of 16 bits, the same in 32 bits, probabilities, exponential noise.
Source: vLLM 0.32, v1/sample/sampler.py and v1/sample/ops/topk_topp_sampler.py, called by
GPUModelRunner._dummy_sampler_run."""
_NCCL_BYTES = {1: 0, 2: 342 * MIB}
_NCCL_BYTES_4 = 392 * MIB
"""Communication buffers from 4 GPUs up (and above for 1 and 2): NVIDIA aiconfigurator, systems/."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large the steps of an engine may be, under vLLM's own names.

    vLLM's own defaults depend on the GPU and the release (0.32: 1024 sequences and 8192 tokens
    from 70 GiB up, else 256 and 2048; engine/arg_utils.py). These are told to every engine, so that
    all count with the same.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


DEFAULT_BATCH = BatchLimits()


def overhead_bytes(spec: ModelSpec, gpus: int = 1, batch: BatchLimits = DEFAULT_BATCH) -> int:
    """Bytes on each GPU besides weights and KV: context, graphs, buffers, activations and logits.

    Activations are those of one layer for a largest step: the residual stream, its norm, queries
    and output, and the feed-forward block's two inputs, at two bytes each. Logits are gathered on
    every GPU; models that generate no text have none.
    """
    width = spec.intermediate
    if spec.experts:
        width = (spec.active_experts + spec.shared_experts) * spec.expert_intermediate
    activations = batch.max_num_batched_tokens * 2 * (4 * spec.hidden + 2 * width // gpus)
    logits = batch.max_num_seqs * spec.vocab * LOGIT_BYTES if spec.causal else 0
    return asleep_bytes(gpus) + activations + logits


def asleep_bytes(gpus: int = 1) -> int:
    """Bytes on each GPU that a sleeping vLLM process keeps: context, graphs and buffers."""
    return CONTEXT_BYTES + GRAPHS_BYTES + _NCCL_BYTES.get(gpus, _NCCL_BYTES_4)


def tensor_parallel_sizes(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    share: float = DEFAULT_SHARE,
    kv_tokens: int = DEFAULT_KV_TOKENS,
    most: int = 8,
    batch: BatchLimits = DEFAULT_BATCH,
) -> tuple[int, ...]:
    """GPUs that one copy can be spread over: powers of two up to `most` that divide the heads and
    hold weights, overhead and `LEAST_KV` of the pool for `kv_tokens`; smallest first."""
    return tuple(
        gpus
        for gpus in spec.tensor_parallel_sizes(most)
        if _least_kv_bytes(spec, gpus, kv_tokens) <= _room_for_kv(spec, gpu, gpus, share, batch)
    )


def tensor_parallel_size(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    share: float = DEFAULT_SHARE,
    kv_tokens: int = DEFAULT_KV_TOKENS,
    most: int = 8,
    batch: BatchLimits = DEFAULT_BATCH,
) -> int:
    """The least of `tensor_parallel_sizes`; `most` is the number of GPUs of the largest node.

    Raises ProfileError where there is none.
    """
    sizes = tensor_parallel_sizes(
        spec, gpu, share=share, kv_tokens=kv_tokens, most=most, batch=batch
    )
    if sizes:
        return sizes[0]
    gpus = spec.tensor_parallel_sizes(most)[-1]
    need = -(-(spec.weights_bytes + _least_kv_bytes(spec, gpus, kv_tokens)) // gpus)
    need += overhead_bytes(spec, gpus, batch)
    raise ProfileError(
        f"{spec.name} needs {format_bytes(need)} on each of {gpus}"
        " GPUs, the most it can be spread over here, and"
        f" a {gpu.name} has {format_bytes(share * gpu.memory_bytes)} to use."
        " Take larger GPUs or nodes, or smaller weights"
    )


def core_model(
    spec: ModelSpec,
    *,
    gpu: GpuSpec | None = None,
    gpus: int | None = None,
    kv_tokens: int = DEFAULT_KV_TOKENS,
    share: float = DEFAULT_SHARE,
    most: int = 8,
    slo: Slo = DEFAULT_SLO,
    name: str = "",
    batch: BatchLimits = DEFAULT_BATCH,
) -> Model:
    """A `core.Model` of `spec` as vLLM would serve it on `gpu`, by the defaults above.

    `gpus` is the tensor-parallel size; not given, the least that fits `gpu` (without `gpu`: 1).
    The KV pool holds `kv_tokens`, or less where the GPUs have not that much room. Raises
    ProfileError where `gpu` cannot hold the model.
    """
    if gpus is None:
        gpus = 1
        if gpu is not None:
            gpus = tensor_parallel_size(
                spec, gpu, share=share, kv_tokens=kv_tokens, most=most, batch=batch
            )
    kv_bytes = _wanted_kv_bytes(spec, gpus, kv_tokens)
    if gpu is not None:
        kv_bytes = min(kv_bytes, max(_room_for_kv(spec, gpu, gpus, share, batch), 0))
    return Model(
        name=name or spec.name,
        weights_bytes=spec.weights_bytes,
        kv_bytes=kv_bytes,
        kv_bytes_per_token=_wanted_kv_bytes(spec, gpus, 1),
        overhead_bytes=overhead_bytes(spec, gpus, batch),
        asleep_bytes=asleep_bytes(gpus),
        gpus=gpus,
        slo=slo,
        family=spec.name,
    )


def _wanted_kv_bytes(spec: ModelSpec, gpus: int, kv_tokens: int) -> int:
    """KV of `kv_tokens` over all `gpus`, with the copies that tensor parallelism makes."""
    return spec.kv_bytes_per_token * kv_tokens * spec.kv_copies(gpus)


def _least_kv_bytes(spec: ModelSpec, gpus: int, kv_tokens: int) -> int:
    return round(LEAST_KV * _wanted_kv_bytes(spec, gpus, kv_tokens))


def _room_for_kv(spec: ModelSpec, gpu: GpuSpec, gpus: int, share: float, batch: BatchLimits) -> int:
    """Bytes over all `gpus` that weights and overhead leave; negative if they do not fit."""
    usable = int(share * gpu.memory_bytes) - overhead_bytes(spec, gpus, batch)
    return gpus * usable - spec.weights_bytes
