"""What authors of policies build on: say who leaves (`OnDemand`) or who is where (`Planned`)."""

from modelium.policies.diff import Target, diff
from modelium.policies.on_demand import Evict, OnDemand
from modelium.policies.place import Place, best_fit, first_fit, most_free
from modelium.policies.planned import Plan, Planned
from modelium.policies.room import Victim

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
