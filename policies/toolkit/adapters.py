"""What authors of policies build on: say who leaves (`OnDemand`) or who is where (`Planned`)."""

from modelium.policies.toolkit.diff import Target, diff
from modelium.policies.toolkit.eviction import Victim
from modelium.policies.toolkit.on_demand import Evict, OnDemand
from modelium.policies.toolkit.placement import Place, best_fit, first_fit, most_free
from modelium.policies.toolkit.planned import Plan, Planned

__all__ = [
    "Evict",
    "OnDemand",
    "Place",
    "Plan",
    "Planned",
    "Target",
    "Victim",
    "best_fit",
    "diff",
    "first_fit",
    "most_free",
]
