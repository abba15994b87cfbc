"""What is served, and how, exchanged while the cluster runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelium.core import Slo
from modelium.live.engines.calibration import CalibratedCosts
from modelium.live.requests.interface import CONFLICT, RefusedError
from modelium.live.settings import LiveInput, Served

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster


@dataclass(frozen=True)
class ModelChanges:
    """Names of models that another configuration changes."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    """Served otherwise: copies that run already have to be replaced."""
    adjusted: list[str] = field(default_factory=list)
    """Only policies see the difference: SLO, pins, numbers of copies."""


def compare(cluster: LiveCluster, given: LiveInput) -> ModelChanges:
    """How the models of `given` differ from those that are served.

    Raises RefusedError (409) if one of them is being removed at this moment.
    """
    before, after = cluster.served, {one.model.name: one for one in given.served}
    for name in after:
        if why := cluster.dispatcher.going.get(name):
            raise RefusedError(CONFLICT, f"{why}; try again when it has gone")
    changes = ModelChanges()
    for name, one in after.items():
        if name not in before:
            changes.added.append(name)
        elif _as_engines_see(one) != _as_engines_see(before[name]):
            changes.replaced.append(name)
        elif one != before[name]:
            changes.adjusted.append(name)
    going = cluster.dispatcher.going
    changes.removed.extend(name for name in before if name not in after and name not in going)
    return changes


def exchange(cluster: LiveCluster, given: LiveInput, changes: ModelChanges) -> None:
    """Serve what `given` says from now on, as `compare` found it to differ.

    Copies of models that were removed or replaced are still there: whoever calls sees them off.
    """
    cluster.deadlines = given.deadlines
    cluster.retention = given.retention
    cluster.failures.patience = given.patience
    cluster.dispatcher.change(given.dispatch)
    cluster.state.limits = given.limits
    cluster.facts.by_model = dict(given.facts.by_model)
    cluster.state.costs = CalibratedCosts(cluster.state, cluster.facts, given.work, cluster.learnt)
    served = {one.model.name: one for one in given.served}
    for name in (*changes.added, *changes.replaced, *changes.adjusted):
        cluster.registry.put(served[name])


def _as_engines_see(served: Served) -> Served:
    """A model without what only policies see of it.

    Whether it may be put to sleep follows from the policy: an engine takes it up at its next load.
    """
    plain = replace(
        served.model,
        slo=Slo(),
        pinned=False,
        min_replicas=0,
        max_replicas=1,
        spread=False,
        asleep_bytes=0,
        can_sleep=False,
    )
    return replace(served, model=plain)
