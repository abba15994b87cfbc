"""What a plan rests on that nobody said, in words for people."""

from __future__ import annotations

from collections.abc import Sequence

from modelium.config.planning.engines import Engines
from modelium.config.planning.plan import Plan
from modelium.control.costs import Stages
from modelium.core import Slo
from modelium.sim.profiles import Profile
from modelium.units import format_bytes, format_seconds


def assumptions(plan: Plan) -> list[str]:
    """What was taken where the configuration leaves it open."""
    said = plan.hardware.notes()
    said += [f"{plan.hardware.share:.0%} of each GPU's memory may be used"]
    rams = sorted({node.host_bytes for node in plan.hardware.nodes})
    amounts = " to ".join(format_bytes(ram) for ram in dict.fromkeys((rams[0], rams[-1])))
    said.append(f"{amounts} of each node's RAM may hold weights")
    return said


def calibration(plan: Plan) -> list[str]:
    """How well step and load times are founded."""
    engines = Engines(plan.models, plan.hardware.by_kind())
    known = [name for name, one in plan.models.items() if one.infer is None]
    kinds = plan.hardware.kinds()
    steps = [engines.profile(name, kind) for name in known for kind in kinds]
    said = [_founded(origin, steps) for origin in TRUST]
    given = len(plan.models) - len(known)
    said += [f"{given} as configured"] * bool(given)
    stages = {one.stages for one in plan.models.values()}
    loads = "published" if stages == {Stages()} else "as configured"
    told = [f"step times: {', '.join(filter(None, said))}", f"load times: {loads}"]
    calibrated = any(step.origin == "calibrated" for step in steps)
    return told if calibrated else [*told, "not calibrated here"]


TRUST = {
    "calibrated": "calibrated on your machines",
    "fitted": "fitted to published measurements",
    "roofline": "by roofline",
}
"""Where step times come from, best first."""


def _founded(origin: str, steps: Sequence[Profile]) -> str:
    """20 fitted to published measurements (mean error 0.6 to 3.4 %)."""
    those = [step for step in steps if step.origin == origin]
    if not those:
        return ""
    errors = [part["mape"] for step in those for part in (step.error or {}).values()]
    far = f" (mean error {100 * min(errors):.1f} to {100 * max(errors):.1f} %)" if errors else ""
    return f"{len(those)} {TRUST[origin]}{far}"


def in_words(slo: Slo) -> str:
    """TTFT <= 2.0 s and TPOT <= 100 ms."""
    limits = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "E2E": slo.e2e_s}
    told = [f"{k} <= {format_seconds(v)}" for k, v in limits.items() if v < float("inf")]
    return " and ".join(told) or "none"
