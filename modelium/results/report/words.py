"""What the report says in words: what was run, the answer, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelium.units import counted, format_bytes, format_seconds

Summary = Mapping[str, Any]
_ENOUGH = 10_000
"""Requests that a 99th percentile should rest on: 100 / (1 - 0.99)."""


def said(summaries: Sequence[Summary], key: str) -> list[str]:
    """The texts under `key` of all runs, each once."""
    return list(dict.fromkeys(text for summary in summaries for text in summary[key]))


def facts(summary: Summary) -> dict[str, str]:
    """What was run, in words; empty ones are left out."""
    asked, parameters = summary["requests"], summary["policy_parameters"]
    facts = {
        "Trace": f"{summary['trace']}: {counted(asked['arrived'], 'request')} for "
        f"{counted(len(summary['per_model']), 'model')} in {_seconds(summary['span_s'])}",
        "Cluster": _cluster(summary["gpus"]),
        "SLO": "; ".join(_slo(slo) for slo in summary["slos"] or ()),
        "Policy": " ".join([summary["policy"], *(f"{k}={v}" for k, v in parameters.items())]),
        "Seed": str(summary["seed"]),
        "Outcome": ", ".join(f"{n:,} {how}" for how, n in asked.items() if n and how != "arrived"),
        "Time": _wall(summary),
        "Versions": ", ".join(f"{name} {v}" for name, v in summary["versions"].items()),
        "Reproduce": summary["command"],
    }
    return {name: text for name, text in facts.items() if text}


def _slo(slo: Summary) -> str:
    limits = {"TTFT": slo["ttft_s"], "TPOT": slo["tpot_s"], "E2E": slo["e2e_s"]}
    told = [f"{name} ≤ {format_seconds(s)}" for name, s in limits.items() if s is not None]
    models = f" ({slo['models']} model{'s' * (slo['models'] != 1)})"
    return (" and ".join(told) or "none") + models


def _cluster(gpus: Sequence[Summary]) -> str:
    kinds: dict[tuple[str, int], int] = {}
    for gpu in gpus:
        key = (gpu["kind"] or "GPU", gpu["memory_bytes"])
        kinds[key] = kinds.get(key, 0) + 1
    parts = [f"{n} × {kind} ({format_bytes(size)} usable)" for (kind, size), n in kinds.items()]
    nodes = len({gpu["node"] for gpu in gpus})
    return f"{', '.join(parts)} on {nodes} node{'s' * (nodes != 1)}"


def _wall(summary: Summary) -> str:
    if not summary["wall_s"]:
        return ""
    words = f"{format_seconds(summary['wall_s'])} of wall time"
    decide_s = summary["decide_s"]
    return words + (f", {format_seconds(decide_s)} of it in the policy" if decide_s else "")


def answer(names: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    """The result in sentences."""
    known = [(n, s) for n, s in zip(names, summaries, strict=True) if s["requests"]["arrived"]]
    if not known:
        return ["No request arrived."]
    ranked = sorted(known, key=lambda pair: -pair[1]["slo_attainment"])
    sentences = [_sentence(*ranked[0])]
    if len(ranked) > 1:
        rest = [f"{name} {percent(summary['slo_attainment'])}" for name, summary in ranked[1:]]
        sentences.append(f"The others: {', '.join(rest)}.")
    return sentences + _at_most(ranked[0][1].get("bounds") or {})


def _at_most(bounds: Summary) -> list[str]:
    bound, awake = bounds.get("slo_attainment"), bounds.get("without_sleep")
    if bound is None:
        return []
    sentence = f"No policy can exceed {percent(bound)}"
    if awake is not None and percent(awake) != percent(bound):
        sentence += f", or {percent(awake)} without putting models to sleep"
    return [sentence + "."]


def _sentence(name: str, summary: Summary) -> str:
    arrived, ttft = counted(summary["requests"]["arrived"], "request"), summary["ttft_s"]
    words = f"{name} met the SLO for {percent(summary['slo_attainment'])} of {arrived}; "
    words += (
        f"{percent(summary['cold_starts']['rate'])} had to wait for a model to be loaded or woken"
    )
    if ttft["p50"] is None:
        return words + "."
    return words + (
        f". Half of the first tokens came within {_seconds(ttft['p50'])}, "
        f"99\u00a0% within {_seconds(ttft['p99'])}."
    )


def trust(summaries: Sequence[Summary]) -> list[str]:
    """What limits the conclusions that these figures allow."""
    texts = [
        "The simulator is validated against closed-form results for queues and caches, recorded "
        "outcomes of other simulators, and measurements of a vLLM server. The documentation has "
        "the tables; `python benchmarks/cases.py` repeats the comparisons.",
    ]
    if not any(s["calibration"] for s in summaries):
        texts.append("The source of the timings is unknown.")
    if not any(s.get("bounds") for s in summaries):
        texts.append("No bound was computed, so it is unknown how much a better policy could gain.")
    else:
        texts.append(
            "The bound also holds for a policy that knows all requests in advance; it may be out "
            "of reach."
        )
    fewest = min(s["requests"]["arrived"] for s in summaries)
    if fewest < _ENOUGH:
        few = counted(fewest, "request")
        texts.append(f"A 99th percentile of {few} is uncertain; use at least {_ENOUGH:,}.")
    if len(summaries) > 1:
        texts.append(
            "Each row is a single run: repeat with other seeds before trusting a small difference."
        )
    lost = max(s["requests"]["arrived"] - s["requests"]["completed"] for s in summaries)
    if lost:
        few = counted(lost, "request")
        texts.append(f"Up to {few} of a run did not complete; each counts as a miss.")
    failed = max(s["failed_actions"] for s in summaries)
    if failed:
        texts.append(
            f"Up to {counted(failed, 'action')} of a run were refused or failed; the decision log "
            "says why."
        )
    return texts


def percent(share: float) -> str:
    """Print a share as 97.9 %, on one line."""
    return f"{100 * share:.1f}\u00a0%"


def _seconds(s: float) -> str:
    return format_seconds(s).replace(" ", "\u00a0")
