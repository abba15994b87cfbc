"""Step times from data sheets: the roofline of compute and memory, with links and overhead.

`t = max(flops / (F*mfu), bytes / (BW*mbu)) + t_comm + t_over` (reference model of the project's
docs/profiles.md), brought into StepTime's form: below the ridge a step costs its weights' bytes,
above it each token costs its FLOPs, and the KV cache that is read comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from modelium.sim.spec import StepTime

MFU = 0.65
"""Share of peak FLOPs that large steps achieve: median over the fitted single-GPU pairs."""
MBU = 0.80
"""Share of peak bandwidth that small steps achieve (aiconfigurator, systems/*.yaml),"""
KERNELS = 8
"""with so many kernels a layer: three projections and two norms, rotation, attention, activation"""
KERNEL_S = 3e-6
"""of this least time (the same files)."""
LINK_SHARE = 0.33
"""Share of a link's peak that an all-reduce of megabytes achieves: NCCL on H100, 2 to 8 GPUs."""
LINK_LATENCY_S = 5e-6
"""Of an all-reduce of kilobytes: vLLM's own on H100, 4.2 to 4.7 us."""
OVERHEAD_S = 1.6e-4
"""Between two steps (vLLM pull request 11133, with asynchronous scheduling)."""
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """What a model asks for, over all GPUs of an instance."""

    weights_bytes: float
    flops_per_token: float
    attention_flops: float
    """Per token and token of its context."""
    kv_bytes_per_token: float
    layers: int
    hidden: int
    expert_bytes: float = 0.0
    """Of the weights, those of routed experts."""
    expert_share: float = 1.0
    """Of its experts that one token takes."""


@dataclass(frozen=True, slots=True)
class Device:
    """What one GPU gives, at peak."""

    flops_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float
    """To the other GPUs of its instance, one direction."""


def roofline(
    work: Work,
    device: Device,
    tp: int = 1,
    *,
    mfu: float = MFU,
    mbu: float = MBU,
    kernel_s: float = KERNEL_S,
    overhead_s: float = OVERHEAD_S,
) -> StepTime:
    """Seconds of a step on `tp` GPUs, from peak figures and the shares of them achieved."""
    flops_s, bytes_s = 1 / (device.flops_per_s * mfu * tp), 1 / (device.bytes_per_s * mbu * tp)
    weights_s, token_s = work.weights_bytes * bytes_s, work.flops_per_token * flops_s
    latency_s, message_s = _all_reduces(work, device, tp)
    fixed_s = overhead_s + latency_s + KERNELS * kernel_s * work.layers
    ridge = max(round(weights_s / token_s), 1)
    kv_s, attention_s = work.kv_bytes_per_token * bytes_s, work.attention_flops * flops_s
    dense = StepTime(
        weights_s + fixed_s, message_s, token_s + message_s, ridge, kv_s,
        weights_s + fixed_s, message_s, token_s + message_s, ridge,
        mixed_kv=kv_s, mixed_ctx=attention_s, mixed_sq=attention_s / 2,
    )  # fmt: skip
    if not work.expert_bytes:
        return dense
    read = [_decode_s(work, d, bytes_s, flops_s) for d in NODES]
    return _through(dense, [s + fixed_s + d * message_s for d, s in zip(NODES, read, strict=True)])


def _all_reduces(work: Work, device: Device, tp: int) -> tuple[float, float]:
    """Seconds of two all-reduces a layer: for each step, and for each token."""
    if tp == 1:
        return 0.0, 0.0
    share = 2 * (tp - 1) / tp
    message_s = share * work.hidden * 2 / (device.link_bytes_per_s * LINK_SHARE)
    return 2 * work.layers * LINK_LATENCY_S, 2 * work.layers * message_s


def _decode_s(work: Work, decode: int, bytes_s: float, flops_s: float) -> float:
    """Weights of the experts that `decode` tokens reach under even routing, or their FLOPs."""
    idle = (1 - work.expert_share) ** decode
    read = work.weights_bytes - work.expert_bytes * idle
    return max(read * bytes_s, decode * work.flops_per_token * flops_s)


def _through(step: StepTime, seconds: list[float]) -> StepTime:
    """The step with decode-only times that go through `seconds` at `NODES`."""
    slopes = [
        (seconds[i + 1] - seconds[i]) / (NODES[i + 1] - NODES[i]) for i in range(len(NODES) - 1)
    ]
    changes = [after - before for before, after in pairwise(slopes[1:])]
    return replace(
        step,
        decode_c=seconds[0] - slopes[0] * NODES[0],
        decode_lo=slopes[0],
        decode_hi=slopes[1],
        decode_hinge=NODES[1],
        decode_bends=tuple(zip(NODES[2:-1], changes, strict=True)),
    )
