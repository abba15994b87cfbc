"""What a plan rests on that nobody said, in words for people."""

from __future__ import annotations

from collections import Counter

from modelium.config.engines import Engines
from modelium.config.plan import Plan
from modelium.core import Slo
from modelium.costs import Stages
from modelium.units import format_bytes, format_seconds


def assumptions(plan: Plan) -> list[str]:
    """What was taken where the configuration leaves it open."""
    said = [f"{plan.hardware.share:.0%} of each GPU's memory may be used"]
    rams = sorted({node.host_bytes for node in plan.hardware.nodes})
    amounts = " to ".join(format_bytes(ram) for ram in dict.fromkeys((rams[0], rams[-1])))
    said.append(f"{amounts} of each node's RAM may hold weights")
    return said


def calibration(plan: Plan) -> list[str]:
    """How well step and load times are founded."""
    engines = Engines(plan.models)
    kinds = plan.hardware.kinds()
    known = [name for name, one in plan.models.items() if one.infer is None]
    origins = Counter(engines.profile(name, kind).origin for name in known for kind in kinds)
    words = {"fitted": "fitted to published measurements", "roofline": "by roofline"}
    steps = [f"{n} {words.get(origin, origin)}" for origin, n in sorted(origins.items())]
    given = len(plan.models) - len(known)
    steps += [f"{given} as configured"] * bool(given)
    stages = {one.stages for one in plan.models.values()}
    loads = "published" if stages == {Stages()} else "as configured"
    return [f"step times: {', '.join(steps)}", f"load times: {loads}", "not calibrated here"]


def in_words(slo: Slo) -> str:
    """TTFT <= 2.0 s and TPOT <= 100 ms."""
    limits = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "E2E": slo.e2e_s}
    told = [f"{k} <= {format_seconds(v)}" for k, v in limits.items() if v < float("inf")]
    return " and ".join(told) or "none"
