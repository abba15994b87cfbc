"""From file names to finished runs: what `modelium simulate` does, for scripts as well."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modelium.config import Config, Plan, find, make_plan, read
from modelium.config.planning.assumed import assumptions, calibration
from modelium.config.planning.guess import TRIAL, guess_fleet, guess_models, parse_models
from modelium.config.planning.hardware import on_fleet
from modelium.config.schema import ModelEntry
from modelium.control.checked_policy import CheckedPolicy
from modelium.core import Policy
from modelium.errors import ConfigError
from modelium.plugins.registry import make_policy, with_defaults

if TYPE_CHECKING:
    from modelium.config.planning.simulation import Router
    from modelium.traces import Trace

Summary = dict[str, Any]
KEYS = ("cluster", "models", "orchestration", "profiles", "simulation", "slo")


@dataclass(frozen=True)
class Experiment:
    """What is simulated, by name."""

    trace: Path
    config: Path | None = None
    """None: where `modelium.config.search` finds one, or no configuration at all."""
    models: str = ""
    """"a=llama-3.1-8b,b=phi-4": what the trace's models are; plain names are dealt to the rest."""
    gpus: str = ""
    router: str = ""


@dataclass(frozen=True)
class Prepared:
    """What is simulated, read and checked."""

    experiment: Experiment
    trace: Trace
    plan: Plan
    config: Path | None
    assumed: tuple[str, ...]

    def policy(self, text: str, seed: int) -> tuple[Policy, str, dict[str, str]]:
        """A policy from the command line's words, with its name and parameters.

        Raises PolicyError for unknown names and parameters.
        """
        name, given = with_defaults(text, self.plan.policy_defaults)
        words = ",".join(f"{key}={value}" for key, value in given.items())
        models = self.plan.models
        made = make_policy(f"{name}:{words}", rng_seed=seed, trace=self.trace, models=models)
        return made, name, given


@dataclass(frozen=True)
class Job:
    """One run."""

    policy: str
    seed: int
    folder: Path
    command: str
    bounds: Mapping[str, float | None] | None = None
    """What no policy can exceed here, where that was asked for."""


def prepare(experiment: Experiment) -> Prepared:
    """Read trace and configuration and fill in what they leave open. Raises ModeliumError."""
    from modelium.traces import check_models, read_trace

    path = find(experiment.config)
    config = read(path) if path else Config()
    trace = read_trace(experiment.trace)
    assumed: list[str] = []
    if experiment.models or not config.models:
        config = _with_models(config, experiment, trace.model.names, assumed)
    check_models(trace, config.models, str(path) if path else "")
    try:
        plan = make_plan(_with_hardware(config, experiment.gpus, assumed))
    except ConfigError as error:
        raise _placed(error, path) from None
    if experiment.router:
        routed = dataclasses.replace(plan.simulation, router=cast("Router", experiment.router))
        plan = dataclasses.replace(plan, simulation=routed)
    return Prepared(experiment, trace, plan, path, (*assumed, *assumptions(plan)))


def _placed(error: ConfigError, path: Path | None) -> ConfigError:
    """The same error with the file's name before the key that it begins with, if it does."""
    key = re.match(r"\w+", str(error))
    return ConfigError(f"{path}: {error}") if path and key and key[0] in KEYS else error


def bounds_of(
    prepared: Prepared, advanced: Callable[[float], object] = lambda share: None
) -> dict[str, float | None]:
    """What no policy can exceed on this trace and cluster (docs/bounds.md).

    `advanced` hears now and then which share of the work was done since it heard last.
    """
    from modelium.sim.bounds.bounds import bounds

    return bounds(prepared.plan.sim_input(prepared.assumed), prepared.trace, advanced)


def play(prepared: Prepared, job: Job) -> Summary:
    """Simulate one run and write its folder."""
    from modelium.sim.run import simulate

    plan, trace = prepared.plan, prepared.trace
    policy, name, given = prepared.policy(job.policy, job.seed)
    run = simulate(
        plan.sim_input(prepared.assumed),
        CheckedPolicy(policy, name),
        trace,
        seed=job.seed,
        meta={
            "policy": name,
            "policy_parameters": given,
            "command": job.command,
            "calibration": calibration(plan),
            "bounds": job.bounds,
        },
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    run.fill(job.folder)
    return run.summary


def play_all(
    prepared: Prepared, jobs: Sequence[Job], processes: int
) -> Iterator[tuple[int, Summary]]:
    """Simulate several runs, in parallel, and yield each one's place and figures as it ends."""
    if processes == 1 or len(jobs) == 1:
        return ((i, play(prepared, job)) for i, job in enumerate(jobs))
    from modelium.experiments.parallel import play_in_processes

    return play_in_processes(prepared.experiment, jobs, processes)


def _with_models(
    config: Config, experiment: Experiment, names: Sequence[str], assumed: list[str]
) -> Config:
    """The trace's models, where the configuration has none; else what --models says of some."""
    named, dealt = parse_models(experiment.models)
    if not config.models:
        entries, said = guess_models(names, named, dealt)
        assumed += said
        return dataclasses.replace(config, models=entries)
    if dealt:
        raise ConfigError(
            f"--models {dealt[0]}: the configuration has models; say which is one, NAME={dealt[0]}"
        )
    told = {
        name: dataclasses.replace(config.models.get(name, ModelEntry()), catalogue=known)
        for name, known in named.items()
    }
    return dataclasses.replace(config, models={**config.models, **told})


def _with_hardware(config: Config, fleet: str, assumed: list[str]) -> Config:
    """GPUs as on the command line, or as configured, or guessed from the models."""
    if fleet:
        return on_fleet(config, fleet)
    if config.cluster.gpus or config.cluster.nodes:
        return config
    models = make_plan(on_fleet(config, TRIAL)).models.values()
    fleet = guess_fleet([served.model for served in models])
    assumed.append(f"no GPUs given: {fleet}, which have room for about half of all models at once")
    return on_fleet(config, fleet)
