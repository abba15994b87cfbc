"""How GPUs were used: time integrals of what they held and did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modelium.core import Gpu
from modelium.results.columns import blocks, distinct
from modelium.results.record import Codes, Floats, floats, labels

if TYPE_CHECKING:
    import pyarrow as pa

_SHARES = (
    "busy",
    "memory_weights",
    "memory_kv",
    "memory_kv_used",
    "memory_other",
    "memory_free",
    "useful",
)


def gpu_shares(
    requests: pa.Table, timeline: pa.Table, gpus: Sequence[Gpu], span_s: float
) -> dict[str, float | None]:
    """Time integrals over [0, span] as shares of all GPU time and of all byte-seconds."""
    held = _integrals(timeline, gpus, span_s)
    time, space = len(gpus) * span_s, sum(g.memory_bytes for g in gpus) * span_s
    if not time or not space:
        return dict.fromkeys(_SHARES)
    useful = held["busy"] @ _good_tokens(requests, timeline, gpus)
    weights, kv, kv_used = (held[kind].sum() / space for kind in ("weights", "kv", "kv_used"))
    other = sum(held[kind].sum() for kind in ("loading", "asleep", "leaving", "overhead")) / space
    shares = (held["busy"].sum() / time, weights, kv, kv_used, other, 1.0 - weights - kv - other)
    return dict(zip(_SHARES, map(float, (*shares, useful / time)), strict=True))


def _integrals(timeline: pa.Table, gpus: Sequence[Gpu], span_s: float) -> dict[str, Floats]:
    """Value x seconds within the span, by kind, for each GPU."""
    kinds, kind_names = labels(timeline, "kind")
    place = _places(timeline, gpus)
    start, end = floats(timeline, "start_s"), floats(timeline, "end_s")
    area = floats(timeline, "value") * np.maximum(np.minimum(end, span_s) - start, 0.0)
    sums = {}
    for kind in ("loading", "weights", "kv", "overhead", "asleep", "leaving", "busy", "kv_used"):
        mine = kinds == (kind_names.index(kind) if kind in kind_names else -2)
        sums[kind] = np.bincount(place[mine], area[mine], minlength=len(gpus))
    return sums


def _good_tokens(requests: pa.Table, timeline: pa.Table, gpus: Sequence[Gpu]) -> Floats:
    """For each GPU, the share of the tokens of its instances that met the SLO."""
    served, names = labels(requests, "instance")
    by_instance = _tokens(requests, served, len(names) + 1)
    number = {name: i for i, name in enumerate(names)}
    holders, holder_names = labels(timeline, "instance")
    numbers = np.array([number.get(name, len(names)) for name in holder_names] + [len(names)])
    pairs = distinct(_places(timeline, gpus) * (len(names) + 1) + numbers[holders])
    place, instance = np.divmod(pairs, len(names) + 1)
    met, all_ = (np.bincount(place, t[instance], minlength=len(gpus)) for t in by_instance)
    return met / np.maximum(all_, 1.0)


def _tokens(requests: pa.Table, served: Codes, bins: int) -> tuple[Floats, Floats]:
    """Tokens of each instance: of requests that met their SLO, and of all.

    The last bin stands for instances that served nothing; it stays at 0.
    """
    asked = [floats(requests, f"{kind}_tokens") for kind in ("prompt", "output", "cached")]
    met = floats(requests, "slo_met")
    sums = np.zeros(2 * bins)
    for rows in blocks(len(served)):
        prompt, output, cached = (column[rows] for column in asked)
        holder = np.where(served[rows] < 0, bins - 1, served[rows])
        sums += np.bincount(2 * holder + met[rows], prompt + output - cached, 2 * bins)
    bad, good = sums.reshape(-1, 2).T
    bad[-1] = good[-1] = 0.0
    return good, bad + good


def _places(timeline: pa.Table, gpus: Sequence[Gpu]) -> Codes:
    """The index in `gpus` of each row's GPU."""
    index = {gpu.id: i for i, gpu in enumerate(gpus)}
    codes, names = labels(timeline, "gpu")
    return np.array([index[name] for name in names], dtype=np.int64)[codes]
