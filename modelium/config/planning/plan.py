"""A configuration with every default filled in, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelium.catalog.fleet import DEFAULT_SHARE
from modelium.config import schema
from modelium.config.planning.hardware import Hardware, hardware
from modelium.config.planning.models import Served, served, slo
from modelium.config.planning.profiles import measured
from modelium.config.planning.simulation import Simulation
from modelium.core import Slo
from modelium.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from modelium.sim.inputs import SimInput
    from modelium.sim.profiles import Entry


@dataclass(frozen=True)
class Plan:
    """What is served on what, and how."""

    hardware: Hardware
    models: Mapping[str, Served]
    slo_classes: Mapping[str, Slo]
    policies: tuple[str, ...]
    """As on the command line; empty if none is configured."""
    policy_defaults: Mapping[str, str]
    """Parameters for all policies that have them, unless they are given their own."""
    simulation: Simulation

    def sim_input(self, notes: tuple[str, ...] = ()) -> SimInput:
        """What `modelium.sim.simulate` takes; `notes` are the assumptions to be told."""
        from modelium.config.planning.engines import Engines
        from modelium.control.costs import ConfiguredFacts
        from modelium.sim.inputs import SimInput

        engines = Engines(self.models, self.hardware.by_kind())
        stages = {name: one.stages for name, one in self.models.items()}
        return SimInput(
            nodes=list(self.hardware.nodes),
            gpus=list(self.hardware.gpus),
            models=[one.model for one in self.models.values()],
            engines=engines,
            work=engines.work_s,
            facts=ConfiguredFacts(by_model=stages, by_node=dict(self.hardware.links)),
            settings=self.simulation.settings(),
            slo_classes=self.slo_classes,
            notes=notes,
        )


def with_model(plan: Plan, config: schema.Config, name: str) -> Plan:
    """The plan with one model as its files and its entry are now. Raises ConfigError."""
    own = _own_profiles(config, plan.hardware)
    one = served(name, config.models[name], config, plan.hardware, own)
    return replace(plan, models={**plan.models, name: one})


def make_plan(config: schema.Config) -> Plan:
    """Fill in every default. Raises ConfigError for what cannot be."""
    asked = config.orchestration
    for name in asked.always_loaded:
        if name not in config.models:
            hint = did_you_mean(name, config.models)
            raise ConfigError(f"orchestration.always_loaded: no model called {name!r}.{hint}")
    _check_aliases(config)
    share = asked.max_gpu_memory_utilization or DEFAULT_SHARE
    cluster = hardware(config.cluster, share)
    classes = {name: slo(limits) or Slo() for name, limits in config.slo.classes.items()}
    own = _own_profiles(config, cluster)
    return Plan(
        hardware=cluster,
        models={
            name: served(name, one, config, cluster, own) for name, one in config.models.items()
        },
        slo_classes=classes,
        policies=tuple(config.policy),
        policy_defaults=_policy_defaults(asked),
        simulation=config.simulation,
    )


def _check_aliases(config: schema.Config) -> None:
    """Each names a model: one that is here, or one that the repository may hold."""
    models, aliases = config.models, config.gateway.aliases
    for alias, model in aliases.items():
        where = f"gateway.aliases.{alias}"
        if alias in models:
            raise ConfigError(f"{where}: a model has this name itself")
        if model in aliases:
            raise ConfigError(f"{where}: {model!r} is an alias, too; name the model itself")
        if model not in models and config.model_repository is None:
            raise ConfigError(f"{where}: no model called {model!r}.{did_you_mean(model, models)}")


def _own_profiles(config: schema.Config, on: Hardware) -> list[Entry]:
    """What was measured on the user's own machines."""
    if not config.profiles:
        return []
    return measured(config.profiles, config.models, {*config.cluster.kinds, *on.kinds()})


def _policy_defaults(asked: schema.Orchestration) -> dict[str, str]:
    """The original keys, by the names that policies' parameters have (see `idle_ttl`)."""
    given = {
        "idle_s": asked.auto_unload_after_seconds,
        "qps_min": asked.min_qps_threshold,
        "check_s": asked.decision_interval_seconds,
        "every_s": asked.decision_interval_seconds,
    }
    return {name: str(value) for name, value in given.items() if value is not None}
