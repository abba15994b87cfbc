"""Steps from aiconfigurator's kernel measurements: matrix multiplications by shape, attention of
prefill and of decode, collectives (https://github.com/ai-dynamo/aiconfigurator, Apache-2.0).

A folder has one folder a system, such as `h100_sxm`, with `gemm`, `attention` and `comm` below, and
`systems/*.yaml`. A step is the sum of its layers' kernels. What lies between these is not measured
there: elementwise kernels take their bytes at the system's achieved bandwidth and a fixed latency,
both from `systems`; attention in mixed batches is that of prefill plus that of decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from modelium import catalog
from modelium.catalog import ModelSpec
from modelium.errors import ProfileError
from modelium.sim.fit.allreduce import collectives
from modelium.sim.fit.form import Floats, Steps
from modelium.sim.fit.grid import MAX_CONTEXT, MAX_DECODE, MIN_CONTEXT, batches, kv_pool_tokens
from modelium.sim.fit.tables import Columns, read_parquet

SYSTEMS = {
    "h100_sxm": "h100-80g",
    "h200_sxm": "h200-141g",
    "a100_sxm": "a100-80g",
    "l40s": "l40s-48g",
    "b200_sxm": "b200-180g",
    "rtx_pro_6000_server": "rtx-pro-6000-96g",
}
MODELS = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")
SIZES = (1, 2, 4, 8)
ATTENTION = ("vllm_flash_attn", "vllm_flash_attn_fa2", "vllm_flashinfer")
"""Kernels in order of preference: what vLLM takes by default where it can."""
LEAST_POOL = 4096
"""Tokens of KV beside the weights below which a deployment is left out."""
BF16 = 2


@dataclass(frozen=True)
class Case:
    """One deployment: a model on `tp` GPUs of a system."""

    folder: Path
    model: str
    gpu: str
    tp: int

    @property
    def skew_alpha(self) -> float:
        """Not measured there."""
        return 0.0

    @property
    def version(self) -> str:
        """Of the vLLM whose multiplications were timed."""
        return _file(self.folder, "gemm").parent.name

    @cached_property
    def _system(self) -> dict[str, float]:
        file = self.folder.parent / "systems" / f"{self.folder.name}.yaml"
        gpu: dict[str, float] = yaml.safe_load(file.read_text(encoding="utf-8"))["gpu"]
        return gpu

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """What kernels achieve of the memory's peak."""
        return self._system["mem_bw"] * self._system["mem_bw_empirical_scaling_factor"]

    @property
    def kernel_s(self) -> float:
        """The least that a kernel takes."""
        return self._system["mem_empirical_constant_latency"]


def cases(root: Path) -> Iterator[Case]:
    """Every deployment that fits. Raises ProfileError where `root` has no known system."""
    folders = [root / name for name in SYSTEMS if (root / name / "gemm").is_dir()]
    if not folders:
        raise ProfileError(f"{root} has none of {', '.join(SYSTEMS)}")
    for folder in folders:
        gpu = SYSTEMS[folder.name]
        for model in MODELS:
            for tp in SIZES:
                if kv_pool_tokens(model, gpu, tp) >= LEAST_POOL:
                    yield Case(folder, model, gpu, tp)


def steps(case: Case) -> Steps:
    """The grid of batches, each as a step of the whole model."""
    spec = catalog.model(case.model)
    pool = kv_pool_tokens(case.model, case.gpu, case.tp)
    decode, context, chunk, computed = batches(pool)
    tokens, prefills = decode + chunk, (chunk > 0).astype(float)
    layer = _multiplications_s(case, spec, tokens) + _elementwise_s(case, spec, tokens)
    layer += _decode_attention_s(case, spec, decode, context)
    layer += _prefill_attention_s(case, spec, chunk, computed)
    head = _Gemm(case.folder)(decode + prefills, spec.vocab / case.tp, spec.hidden)
    seconds = spec.layers * layer + head
    if case.tp > 1:
        together = collectives(case.folder, case.tp)
        hidden, logits = tokens * spec.hidden * BF16, (decode + prefills) * spec.vocab * BF16
        seconds += (2 * spec.layers + 1) * together.all_reduce(hidden) + together.gather(logits)
    return Steps(
        decode, decode * context, chunk, prefills, chunk * computed, chunk * chunk, seconds
    )


def _multiplications_s(case: Case, spec: ModelSpec, rows: Floats) -> Floats:
    """Of one layer: queries, keys and values; output; the feed-forward block's two."""
    gemm, tp = _Gemm(case.folder), case.tp
    queries, keys = spec.heads * spec.head_dim, max(spec.kv_heads / tp, 1) * spec.head_dim
    return (
        gemm(rows, queries / tp + 2 * keys, spec.hidden)
        + gemm(rows, spec.hidden, queries / tp)
        + gemm(rows, 2 * spec.intermediate / tp, spec.hidden)
        + gemm(rows, spec.hidden, spec.intermediate / tp)
    )


class _Gemm:
    """Seconds of (m x k) times (k x n): linear in m, log-linear in n and k between shapes."""

    def __init__(self, system: Path) -> None:
        rows = read_parquet(_file(system, "gemm"), gemm_dtype="bfloat16")
        m, n, k = (rows[name].astype(float) for name in ("m", "n", "k"))
        self.m, self.n, self.k = np.unique(m), np.unique(n), np.unique(k)
        self.seconds = np.full((len(self.m), len(self.n), len(self.k)), np.nan)
        at = [np.searchsorted(axis, x) for axis, x in ((self.m, m), (self.n, n), (self.k, k))]
        self.seconds[tuple(at)] = rows["latency"] * 1e-3

    def __call__(self, m: Floats, n: float, k: float) -> Floats:
        parts = max(np.ceil(n / self.n[-1]), 1)  # wider than measured: as several side by side
        by_m = np.zeros(len(self.m))
        for i, a in _between(self.n, n / parts):
            for j, b in _between(self.k, k):
                by_m += a * b * np.log(self.seconds[:, i, j])
        curve = parts * np.exp(by_m)
        known = ~np.isnan(curve)
        seconds: Floats = np.interp(m, self.m[known], curve[known])
        return seconds


def _between(axis: Floats, x: float) -> list[tuple[int, float]]:
    """The neighbours of `x` on `axis` with their weights on a logarithmic scale."""
    right = int(np.clip(np.searchsorted(axis, x), 1, len(axis) - 1))
    low, high = np.log(axis[right - 1]), np.log(axis[right])
    weight = float((np.log(x) - low) / (high - low))
    return [(i, w) for i, w in ((right - 1, 1 - weight), (right, weight)) if w]


def _elementwise_s(case: Case, spec: ModelSpec, tokens: Floats) -> Floats:
    """Of one layer: two norms with the residual, rotation and writing of keys, activation."""
    norms = 2 * 4 * spec.hidden
    rotation = 2 * (spec.heads + 2 * spec.kv_heads) * spec.head_dim / case.tp
    activation = 3 * spec.intermediate / case.tp
    values = tokens * (norms + rotation + activation)
    return values * BF16 / case.bandwidth_bytes_per_s + 4 * case.kernel_s


def _decode_attention_s(case: Case, spec: ModelSpec, decode: Floats, context: Floats) -> Floats:
    """Of one layer, `decode` sequences of `context` tokens each.

    Not below what the memory can deliver: repeated on its own, a kernel finds the KV of a small
    batch in the L2 cache, from which the other layers drive it in an engine.
    """
    from scipy.interpolate import RegularGridInterpolator

    look_up = RegularGridInterpolator(*_decode_grid(_attention(case, spec, "generation")))
    measured = look_up((np.maximum(decode, 1), np.maximum(context, MIN_CONTEXT)))
    kv_heads = max(spec.kv_heads // case.tp, 1)
    read = decode * context * 2 * kv_heads * spec.head_dim * BF16
    result: Floats = np.maximum(measured, read / case.bandwidth_bytes_per_s)
    return np.where(decode > 0, result, 0.0)


def _decode_grid(rows: Columns) -> tuple[tuple[Floats, Floats], Floats]:
    """Seconds by batch size and context; what is too large to be measured goes on linearly."""
    batch, context = rows["batch_size"].astype(float), rows["step"].astype(float) + 1
    keep = (batch <= MAX_DECODE) & (context <= 2 * MAX_CONTEXT)
    by_batch, by_context = np.unique(batch[keep]), np.unique(context[keep])
    grid = np.full((len(by_batch), len(by_context)), np.inf)
    at = np.searchsorted(by_batch, batch[keep]), np.searchsorted(by_context, context[keep])
    np.minimum.at(grid, at, rows["latency"][keep] * 1e-3)
    for j in range(2, len(by_context)):
        step = (by_context[j] - by_context[j - 1]) / (by_context[j - 1] - by_context[j - 2])
        further = grid[:, j - 1] + step * (grid[:, j - 1] - grid[:, j - 2])
        grid[:, j] = np.where(np.isinf(grid[:, j]), further, grid[:, j])
    # More work cannot take less time: a hiccup of the measurement ends at its larger neighbour.
    for axis in (0, 1):
        grid = np.flip(np.minimum.accumulate(np.flip(grid, axis), axis), axis)
    return (by_batch, by_context), grid


def _prefill_attention_s(case: Case, spec: ModelSpec, chunk: Floats, computed: Floats) -> Floats:
    """Of one layer, a chunk on a context: what the whole takes less what the context takes."""
    rows = _attention(case, spec, "context", batch_size=1)
    lengths, where = np.unique(rows["isl"].astype(float), return_inverse=True)
    seconds = np.full(len(lengths), np.inf)
    np.minimum.at(seconds, where, rows["latency"] * 1e-3)

    def whole(n: Floats) -> Floats:
        result: Floats = np.interp(n, lengths, seconds)
        return result

    partly = np.maximum(whole(chunk + computed) - whole(computed), whole(chunk))
    return np.where(chunk > 0, partly, 0.0)


def _attention(case: Case, spec: ModelSpec, phase: str, **wanted: int) -> Columns:
    """Rows of this model's heads on one GPU, by the first kernel of `ATTENTION` there is."""
    file = _file(case.folder, "attention").parent / f"{phase}_attention_perf.parquet"
    heads, kv_heads = spec.heads // case.tp, max(spec.kv_heads // case.tp, 1)
    shape = {"num_heads": heads, "head_dim": spec.head_dim, "window_size": 0, **wanted}
    for kernel in ATTENTION:
        rows = read_parquet(
            file, kernel_source=kernel, kv_cache_dtype="bfloat16",
            num_key_value_heads=kv_heads, **shape,
        )  # fmt: skip
        if len(rows["latency"]):
            return rows
    raise ProfileError(f"{file} has no attention of {heads} heads over {kv_heads} KV heads")


def _file(system: Path, kind: str) -> Path:
    names = {"gemm": "gemm_perf", "attention": "context_attention_perf"}
    found = sorted((system / kind / "vllm").glob(f"*/{names[kind]}.parquet"))
    if not found:
        raise ProfileError(f"{system} has no {kind} measurements")
    return found[-1]
