"""From tables to figures: what a run achieved, in the words of `DEFINITIONS`.

Pure functions on columns; percentiles by linear interpolation; null where a figure is undefined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from modelium.core import Gpu, Slo, was_cancelled
from modelium.results.columns import blocks, counts, grouped, percentiles
from modelium.results.record import COLD, OUTCOMES, Codes, Floats, floats, labels
from modelium.results.utilization import gpu_shares

if TYPE_CHECKING:
    import pyarrow as pa

Bools = NDArray[np.bool_]

DEFINITIONS = {
    "TTFT": "Time to first token: from arrival to the first token, queueing and the loading or "
    "waking of the model included. For models that return a single result: the same as E2E.",
    "TPOT": "Time per output token: (last token - first token) / (tokens - 1), one value per "
    "request. Undefined for results of one token or in one piece.",
    "E2E": "End to end: from arrival to the last token; TTFT + (tokens - 1) x TPOT.",
    "SLO attainment": "Share of all arrivals that completed within every limit of their SLO. "
    "Rejected, failed, cancelled and unfinished requests count as misses.",
    "goodput": "Requests that met their SLO, per second of the observed span, at the offered load.",
    "cold start": "A request that had to wait for its model to be loaded or woken. The rate is "
    "over all arrivals; tiers say where the weights came from.",
    "triggers": "Loads and wakes that started while a request waited for that model.",
    "loads": "Loads started, likewise unloads, sleeps, wakes and moves; refused and failed actions "
    "are counted separately.",
    "GPU busy": "Share of GPU time in which at least one step was running. It does not say how "
    "much of the GPU that step used.",
    "memory": "Time integral of the bytes held over capacity x time: weights, KV pools as "
    "reserved, KV as used, other (loading, asleep, leaving, overhead) and free.",
    "useful": "Busy share times the share of tokens, GPU by GPU, that belonged to requests which "
    "met their SLO.",
    "GPU-seconds": "Number of GPUs times the observed span.",
    "fairness": "Jain's index over models of their SLO attainment, 1 when all are served alike; "
    "and the model that was served worst.",
    "observed span": "From the start of the trace to its last arrival. Shares of time and rates "
    "are over it; requests are followed until they end.",
    "percentiles": "Over the requests for which the figure is defined, by linear interpolation.",
}
"""What each metric means; printed in every report."""

_PERCENTILES = (50, 90, 99)
_NAMES = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Latencies:
    """Seconds per request, NaN where undefined."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


def latencies(requests: pa.Table) -> Latencies:
    """Return what each request felt."""
    arrival, first = floats(requests, "arrival_s"), floats(requests, "first_token_s")
    finish, tokens = floats(requests, "finish_s"), floats(requests, "output_tokens")
    ttft = first - arrival
    begun, ended = first.view(np.int64), finish.view(np.int64)  # so that NaN equals NaN
    if all(np.array_equal(begun[rows], ended[rows]) for rows in blocks(len(begun))):
        return Latencies(ttft, np.broadcast_to(np.nan, len(begun)), ttft)  # all in one piece
    tpot = np.empty(len(tokens))
    for rows in blocks(len(tokens)):
        took = finish[rows] - first[rows]
        gaps = np.where((tokens[rows] > 1) & (took > 0), tokens[rows] - 1.0, np.nan)
        np.divide(took, gaps, out=tpot[rows])
    return Latencies(ttft, tpot, finish - arrival)


def summarize(
    requests: pa.Table,
    decisions: pa.Table,
    timeline: pa.Table,
    *,
    span_s: float,
    gpus: Sequence[Gpu],
    meta: Mapping[str, Any],
    slos: Mapping[str, Slo] | None = None,
) -> dict[str, Any]:
    """Return the figures of a run as a JSON object (no NaN; keys in a fixed order).

    `span_s` is the observed span. `meta` tells what the tables do not: policy, trace, seed, and
    where known policy_parameters, command, assumptions, calibration, bounds, wall_s, decide_s and
    versions. With the models' `slos`, these and the attainment of each
    limit alone are given too.
    """
    felt, met = latencies(requests), floats(requests, "slo_met")
    models, names = labels(requests, "model")
    cold, tiers = labels(requests, "cold")
    waited = cold >= 0
    if "" in tiers:
        waited &= cold != tiers.index("")
    arrived, good, wall_s = len(models), np.count_nonzero(met), meta.get("wall_s")
    ttft = statistics(felt.ttft_s)
    by_model = _by_model(models, names, felt.ttft_s, met, waited)
    return {
        "policy": meta["policy"],
        "policy_parameters": meta.get("policy_parameters", {}),
        "trace": meta["trace"],
        "seed": meta["seed"],
        "span_s": span_s,
        "requests": {"arrived": arrived} | _tally(requests, "outcome", OUTCOMES),
        "slo_attainment": _ratio(good, arrived),
        "slos": _limits([slos[n] for n in by_model]) if slos else None,
        "slo_alone": _alone(felt, [slos[n] for n in names], models) if slos and arrived else None,
        "goodput_per_s": _ratio(good, span_s),
        "ttft_s": ttft,
        "tpot_s": statistics(felt.tpot_s),
        "e2e_s": dict(ttft) if felt.e2e_s is felt.ttft_s else statistics(felt.e2e_s),
        "cold_starts": {
            "requests": int(np.count_nonzero(waited)),
            "rate": _ratio(np.count_nonzero(waited), arrived),
            "by_tier": _tally(requests, "cold", COLD[1:]),
            "triggers": _triggers(requests, decisions, waited),
        },
        **_actions(decisions),
        "gpu": gpu_shares(requests, timeline, gpus, span_s),
        "gpu_seconds": len(gpus) * span_s,
        "fairness": _fairness(by_model),
        **({"bounds": meta["bounds"]} if meta.get("bounds") else {}),
        "wall_s": wall_s,
        "requests_per_wall_s": _ratio(arrived, wall_s),
        "decide_s": meta.get("decide_s"),
        "versions": dict(meta.get("versions", {})),
        "command": meta.get("command", ""),
        "assumptions": list(meta.get("assumptions", ())),
        "calibration": list(meta.get("calibration", ())),
        "gpus": [
            {"id": g.id, "node": g.node, "kind": g.kind, "memory_bytes": g.memory_bytes}
            for g in gpus
        ],
        "per_model": by_model,
    }


def statistics(seconds: Floats) -> dict[str, float | None]:
    """Mean and percentiles of the defined values; null where there are none."""
    known = _defined(seconds)
    if not len(known):
        return dict.fromkeys(_NAMES)
    values = [float(known.mean()), *percentiles(known, _PERCENTILES)]
    return dict(zip(_NAMES, values, strict=True))


def _defined(seconds: Floats) -> Floats:
    undefined = np.isnan(seconds)
    return seconds[~undefined] if undefined.any() else seconds


def _ratio(part: SupportsFloat, whole: float | None) -> float | None:
    return float(part) / whole if whole else None


def _tally(table: pa.Table, column: str, names: Sequence[str]) -> dict[str, int]:
    return _counts(*labels(table, column), names)


def _counts(codes: Codes, known: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    found = dict(zip(known, counts(codes, len(known)).tolist(), strict=True))
    return {name: found.get(name, 0) for name in names}


def _by_model(
    models: Codes, names: Sequence[str], ttft_s: Floats, met: Bools, waited: Bools
) -> dict[str, dict[str, Any]]:
    """Figures of each model that was asked for, in the order of the table of names."""
    bad, good = counts(2 * models + met, 2 * len(names)).reshape(-1, 2).T
    asked, cold = bad + good, counts(models[waited], len(names))
    groups = grouped(ttft_s, models, asked)
    figures = {}
    for i in np.flatnonzero(asked).tolist():
        known = _defined(groups[i])
        p50, p99 = percentiles(known, (50, 99)) if len(known) else (None, None)
        figures[names[i]] = {
            "requests": int(asked[i]),
            "slo_met": int(good[i]),
            "slo_attainment": float(good[i] / asked[i]),
            "cold_starts": int(cold[i]),
            "ttft_p50_s": p50,
            "ttft_p99_s": p99,
        }
    return figures


def _limits(slos: Sequence[Slo]) -> list[dict[str, float | None]]:
    """Each SLO with the number of models that have it, most common first; null: no such limit."""
    return [
        {name: limit if limit < float("inf") else None for name, limit in asdict(slo).items()}
        | {"models": count}
        for slo, count in Counter(slos).most_common()
    ]


def _alone(felt: Latencies, slos: Sequence[Slo], models: Codes) -> dict[str, float]:
    """Attainment of each limit alone, over all arrivals."""
    limits = np.array([(s.ttft_s, s.tpot_s, s.e2e_s) for s in slos]).T
    alike = (limits == limits[:, :1]).all()
    good = np.zeros(3)
    for rows in blocks(len(models)):
        ttft, tpot, e2e = limits[:, :1] if alike else limits[:, models[rows]]
        completed = ~np.isnan(felt.e2e_s[rows])
        good += (
            np.count_nonzero(felt.ttft_s[rows] <= ttft),
            np.count_nonzero(completed & ~(felt.tpot_s[rows] > tpot)),
            np.count_nonzero(felt.e2e_s[rows] <= e2e),
        )
    return dict(zip(("ttft", "tpot", "e2e"), (good / len(models)).tolist(), strict=True))


def _actions(decisions: pa.Table) -> dict[str, int]:
    kinds, known = labels(decisions, "kind")
    fine = _went_well(decisions)
    counts = _counts(kinds[fine], known, ("load", "unload", "sleep", "wake", "move"))
    errors = decisions["error"].to_pylist()
    failed = sum(bool(error) and not was_cancelled(error) for error in errors)
    return {f"{kind}s": n for kind, n in counts.items()} | {"failed_actions": failed}


def _went_well(decisions: pa.Table) -> Bools:
    return np.array([not error for error in decisions["error"].to_pylist()], np.bool_)


def _triggers(requests: pa.Table, decisions: pa.Table, waited: Bools) -> int:
    """Loads and wakes at whose start a cold request of that model had come and not been served."""
    models, names = labels(requests, "model")
    models, arrival = models[waited], floats(requests, "arrival_s")[waited]
    served = np.nan_to_num(floats(requests, "first_token_s")[waited], nan=np.inf)
    kinds, kind_names = labels(decisions, "kind")
    targets, target_names = labels(decisions, "model")
    starts = np.array([kind in ("load", "wake") for kind in kind_names] + [False])[kinds]
    starts &= _went_well(decisions)
    at, code_of = floats(decisions, "at_s"), {name: i for i, name in enumerate(names)}
    order = np.argsort(models, kind="stable")
    edges = np.searchsorted(models[order], np.arange(len(names) + 1))
    total = 0
    for target in sorted(set(targets[starts].tolist())):
        code = code_of.get(target_names[target])
        if code is not None:
            mine = order[edges[code] : edges[code + 1]]
            when = at[starts & (targets == target)]
            came = np.searchsorted(np.sort(arrival[mine]), when, side="right")
            went = np.searchsorted(np.sort(served[mine]), when, side="right")
            total += int(np.count_nonzero(came > went))
    return total


def _fairness(by_model: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    shares = np.array([figures["slo_attainment"] for figures in by_model.values()])
    if not len(shares):
        return {"jain": None, "worst_model": None}
    worst = list(by_model)[int(np.argmin(shares))]
    jain = _ratio(shares.sum() ** 2, len(shares) * float((shares**2).sum()))
    return {
        "jain": jain,
        "worst_model": {"model": worst, "slo_attainment": float(shares.min())},
    }
