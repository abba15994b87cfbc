"""Steps from LLMServingSim's profiles: vLLM's layers timed one by one, attention also in mixed
batches (https://github.com/casys-kaist/LLMServingSim, MIT; arXiv 2511.07229).

A folder is `GPU/organisation/model/dtype/tpN` with `dense.csv` (microseconds of each operation by
tokens), `per_sequence.csv` (by sequences), `attention.csv` (by chunk, context and decodes) and, for
a mixture of experts, `moe.csv` (by tokens and experts that have some); `meta.yaml` lies above.
A step is the sum of its layers' kernels, with what tensor parallelism adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from modelium import catalog
from modelium.catalog import GpuSpec, ModelSpec
from modelium.errors import ProfileError
from modelium.sim.fit.allreduce import Collectives, collectives
from modelium.sim.fit.form import Floats, Steps
from modelium.sim.fit.grid import is_met, kv_pool_tokens, padded
from modelium.sim.fit.tables import column, read_csv

GPUS = {"RTXPRO6000": "rtx-pro-6000-96g", "RTX4090": "rtx-4090-24g"}
SYSTEMS = {"rtx-pro-6000-96g": "rtx_pro_6000_server"}
"""Where aiconfigurator has the collectives of a GPU."""
ONCE = {"embedding", "final_layernorm"}
"""Dense operations that run once a step; the others run once a layer,"""
TWICE = {"layernorm"}
"""or twice."""
BF16 = 2
COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
CHUNK, COMPUTED, DECODE, CONTEXT = range(4)


@dataclass(frozen=True, slots=True)
class Case:
    """One profiled deployment: a model on `tp` GPUs, or on `ep` replicas that share its experts."""

    folder: Path
    model: str
    gpu: str
    tp: int
    ep: int
    meta: dict[str, Any]

    @property
    def skew_alpha(self) -> float:
        """Share of the way from mean to largest context that attention to uneven ones costs."""
        fitted = (self.meta.get("skew_fit") or {}).get("per_tp") or {}
        return float(fitted.get(self.tp, {}).get("alpha_default", 0.0))


def cases(root: Path) -> Iterator[Case]:
    """Every deployment below `root`. Raises ProfileError where there is none."""
    folders = sorted(file.parent for file in root.glob("*/*/*/*/tp*/attention.csv"))
    if not folders:
        raise ProfileError(f"{root} has no GPU/organisation/model/dtype/tpN/attention.csv")
    for folder in folders:
        meta = yaml.safe_load((folder.parent / "meta.yaml").read_text(encoding="utf-8"))
        gpu = gpu_of(folder.relative_to(root).parts[0])
        spec = model_of(meta["model"])
        tp = int(folder.name.removeprefix("tp"))
        if not spec.experts:
            yield Case(folder, spec.name, gpu.name, tp, 1, meta)
        elif (folder / "moe.csv").exists():  # some were profiled without their experts
            for ep in (1, 2):
                yield Case(folder, spec.name, gpu.name, tp, ep, meta)


def gpu_of(name: str) -> GpuSpec:
    """The catalogue's GPU by LLMServingSim's name or its own. Raises ProfileError for others."""
    return catalog.gpu(GPUS.get(name, name))


def model_of(name: str) -> ModelSpec:
    """The catalogue's model by its name on the hub, release dates of a month aside."""
    return catalog.model(name.removesuffix("-2507"))


def steps(case: Case, links: Path | None) -> Steps:
    """What each measured attention batch, and some between, would take as a step of the model.

    `links` is aiconfigurator's folder, for the collectives of several GPUs. Raises ProfileError
    where those are needed and not given.
    """
    file = case.folder / "attention.csv"
    rows = read_csv(file)
    measured = _finer(np.stack([column(rows, name, file) for name in COLUMNS]))
    chunk, computed, decode, context, _ = measured
    spec = catalog.model(case.model)
    pool = kv_pool_tokens(case.model, case.gpu, case.tp * case.ep)
    keep = is_met(decode, context, computed, pool)
    chunk, computed, decode, context, attention_us = measured[:, keep]
    tokens, prefills = decode + chunk, (chunk > 0).astype(float)
    seconds = 1e-6 * (
        _dense_us(case.folder, spec, tokens)
        + _per_sequence_us(case.folder, decode + prefills)
        + spec.layers * attention_us
    )
    if spec.experts:
        seconds += 1e-6 * spec.layers * _experts_us(case, spec, tokens)
    if case.tp * case.ep > 1:
        seconds += _collectives_s(case, spec, links, tokens, decode + prefills)
    return Steps(
        decode, decode * context, chunk, prefills, chunk * computed, chunk * chunk, seconds
    )


def _finer(measured: Floats) -> Floats:
    """Columns of attention batches, with three more, linear, between neighbours in the grid.

    The grid is of powers of two. Decoding batches of these sizes just fill the tiles of a matrix
    multiplication, and chunks of these sizes with decodes on top have just begun one: steps at
    those points alone would be cheaper, or dearer, than the steps around them.
    """
    parts = [measured]
    for axis, others in (
        (CHUNK, [COMPUTED, DECODE, CONTEXT]),
        (DECODE, [CHUNK, COMPUTED, CONTEXT]),
    ):
        ordered = measured[:, np.lexsort(measured[[axis, *others]])]
        left, right = ordered[:, :-1], ordered[:, 1:]
        follow = (left[others] == right[others]).all(axis=0) & (left[axis] > 0)
        if axis == DECODE:
            follow &= left[CHUNK] == 0
        left, right = left[:, follow], right[:, follow]
        parts += [left + share * (right - left) for share in (0.25, 0.5, 0.75)]
    return np.concatenate(parts, axis=1)


def _dense_us(folder: Path, spec: ModelSpec, tokens: Floats) -> Floats:
    total, rows = np.zeros_like(tokens), padded(tokens)
    for name, at, us in _curves(folder / "dense.csv", "tokens"):
        times = 1 if name in ONCE else spec.layers * (2 if name in TWICE else 1)
        total += times * np.interp(rows, at, us)
    return total


def _per_sequence_us(folder: Path, sequences: Floats) -> Floats:
    curves = _curves(folder / "per_sequence.csv", "sequences")
    total: Floats = np.sum([np.interp(sequences, at, us) for _, at, us in curves], axis=0)
    return total


def _curves(file: Path, by: str) -> Iterator[tuple[str, Floats, Floats]]:
    rows = read_csv(file)
    at, us = column(rows, by, file), column(rows, "time_us", file)
    for name in np.unique(rows["layer"]):
        mine = np.flatnonzero(rows["layer"] == name)
        order = mine[np.argsort(at[mine])]
        yield str(name), at[order], us[order]


def _experts_us(case: Case, spec: ModelSpec, tokens: Floats) -> Floats:
    """Microseconds of one layer's experts under even routing.

    With `ep` replicas a GPU has its share of the experts and the tokens of all replicas, so as
    many pairs of token and expert as alone, on fewer experts.
    """
    from scipy.interpolate import RegularGridInterpolator

    file = case.folder / "moe.csv"
    rows = read_csv(file)
    n, active, us = (
        column(rows, name, file) for name in ("tokens", "activated_experts", "time_us")
    )
    ns, actives = np.unique(n), np.unique(active)
    grid = np.full((len(ns), len(actives)), np.nan)
    grid[np.searchsorted(ns, n), np.searchsorted(actives, active)] = us
    for row in grid:  # few tokens cannot have many experts: hold the last that was measured
        row[np.isnan(row)] = row[~np.isnan(row)][-1]
    missed = (1 - spec.active_experts / spec.experts) ** (tokens * case.ep)
    working = np.clip(spec.experts / case.ep * (1 - missed), actives[0], actives[-1])
    look_up = RegularGridInterpolator((ns, actives), grid, bounds_error=False, fill_value=None)
    result: Floats = look_up((tokens, working))
    return result


def _collectives_s(
    case: Case, spec: ModelSpec, links: Path | None, tokens: Floats, sequences: Floats
) -> Floats:
    together = _links(case, links)
    hidden = tokens * spec.hidden * BF16
    if case.ep > 1:  # gather the tokens of all replicas for the experts, scatter what these say
        each = together.gather(case.ep * hidden) + together.scatter(case.ep * hidden)
        return spec.layers * each
    logits = sequences * spec.vocab * BF16
    return (2 * spec.layers + 1) * together.all_reduce(hidden) + together.gather(logits)


def _links(case: Case, links: Path | None) -> Collectives:
    system = SYSTEMS.get(case.gpu)
    if links is None or system is None:
        raise ProfileError(f"{case.folder} needs --links: aiconfigurator's folder with {system}")
    return collectives(links / system, case.tp * case.ep)
