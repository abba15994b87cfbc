"""What is simulated: one plain value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelium.control.costs import ConfiguredFacts, Work
from modelium.core import Gpu, Model, Node, Slo
from modelium.sim.spec import Engine, Settings


@dataclass(frozen=True)
class SimInput:
    """What is simulated, but for the trace and the policy."""

    nodes: list[Node]
    gpus: list[Gpu]
    models: list[Model]
    engines: Callable[[Model, str], Engine]
    """The engine of a model on a kind of GPU."""
    work: Work
    facts: ConfiguredFacts = field(default_factory=ConfiguredFacts)
    settings: Settings = Settings()
    slo_classes: Mapping[str, Slo] = field(default_factory=dict)
    """SLOs of the trace's classes, in place of the model's own; first named, first served."""
    notes: tuple[str, ...] = ()
    """What had to be assumed; said in every report."""
