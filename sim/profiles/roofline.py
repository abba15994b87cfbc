"""Step times from data sheets: the roofline of compute and memory, with links and overhead.

`t = max(flops / (F*mfu), bytes / (BW*mbu)) + t_comm + t_over` (reference model of the project's
docs/profiles.md), brought into StepTime's form: below the ridge a step costs its weights' bytes,
above it each token costs its FLOPs, and the KV cache that is read comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    lo, hi, hinge, bends = message_s, token_s + message_s, ridge, ()
    decode_c = weights_s + fixed_s
    if work.expert_bytes:
        decode_c, lo, hi, hinge, bends = _through(
            [_decode_s(work, d, bytes_s, flops_s) + fixed_s + d * message_s for d in NODES]
        )
    return StepTime(
        decode_c, lo, hi, hinge, kv_s,
        weights_s + fixed_s, message_s, token_s + message_s, ridge,
        mixed_kv=kv_s, mixed_ctx=attention_s, mixed_sq=attention_s / 2, decode_bends=bends,
    )  # fmt: skip


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


def _through(
    seconds: list[float],
) -> tuple[float, float, float, int, tuple[tuple[int, float], ...]]:
    """Constant, slopes, hinge and bends of the line through `seconds` at `NODES`."""
    pairs = zip(NODES, NODES[1:], seconds, seconds[1:], strict=False)
    slopes = [(t1 - t0) / (d1 - d0) for d0, d1, t0, t1 in pairs]
    changes = zip(NODES[2:-1], slopes[1:], slopes[2:], strict=False)
    bends = tuple((at, after - before) for at, before, after in changes)
    return seconds[0] - slopes[0] * NODES[0], slopes[0], slopes[1], NODES[1], bends
