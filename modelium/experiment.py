"""From file names to finished runs: what `modelium simulate` does, for scripts as well."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.config import Config, Plan, find, make_plan, read
from modelium.config.assumed import assumptions, calibration
from modelium.config.guess import TRIAL, guess_fleet, guess_models, parse_models
from modelium.config.hardware import on_fleet
from modelium.config.schema import ModelEntry
from modelium.core import Policy
from modelium.errors import ConfigError, ModeliumError
from modelium.guard import Guarded
from modelium.registry import make_policy, with_defaults

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event, Lock

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
    config = read(path) if path else Config.model_construct()
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
        routed = plan.simulation.model_copy(update={"router": experiment.router})
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
    from modelium.sim.bounds import bounds

    return bounds(prepared.plan.sim_input(prepared.assumed), prepared.trace, advanced)


def play(prepared: Prepared, job: Job) -> Summary:
    """Simulate one run and write its folder."""
    from modelium.sim.run import simulate

    plan, trace = prepared.plan, prepared.trace
    policy, name, given = prepared.policy(job.policy, job.seed)
    run = simulate(
        plan.sim_input(prepared.assumed),
        Guarded(policy, name),
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
        yield from ((i, play(prepared, job)) for i, job in enumerate(jobs))
        return
    context, others = get_context("spawn"), set(active_children())
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=context,
        initializer=_start,
        initargs=(prepared.experiment, context.Lock(), context.Event()),
    )
    try:
        waiting = {
            pool.submit(_play_elsewhere, prepared.experiment, job): i for i, job in enumerate(jobs)
        }
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BaseException as error:
        # Runs that go on would write into a folder that is given up, and hold up the exit.
        for worker in set(active_children()) - others:
            worker.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ModeliumError(
                "a simulation's process was killed; if memory ran out, --jobs 1 needs least"
            ) from None
        raise
    pool.shutdown(wait=False)


_prepared_once = lru_cache(maxsize=1)(prepare)
"""Each process reads trace and configuration once, for all the runs that it is given."""


def _start(experiment: Experiment, first: Lock, compiled: Event) -> None:
    """Begin a worker: the first one compiles the kernels, the others wait for it."""
    # An interrupt ends a worker at once and without a word; it has nothing to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not first.acquire(block=False):
        compiled.wait()
        return
    try:
        with suppress(ModeliumError):  # which the runs themselves will tell
            _compile(_prepared_once(experiment))
    finally:
        compiled.set()


def _compile(prepared: Prepared) -> None:
    """Play one request: that loads every kernel, or compiles it if this machine never did."""
    import numpy as np

    from modelium.sim.run import simulate

    simulate(prepared.plan.sim_input(), make_policy("lru"), prepared.trace.take(np.arange(1)))


def _play_elsewhere(experiment: Experiment, job: Job) -> Summary:
    return play(_prepared_once(experiment), job)


def _with_models(
    config: Config, experiment: Experiment, names: Sequence[str], assumed: list[str]
) -> Config:
    """The trace's models, where the configuration has none; else what --models says of some."""
    named, dealt = parse_models(experiment.models)
    if not config.models:
        entries, said = guess_models(names, named, dealt)
        assumed += said
        return config.model_copy(update={"models": entries})
    if dealt:
        raise ConfigError(
            f"--models {dealt[0]}: the configuration has models; say which is one, NAME={dealt[0]}"
        )
    told = {
        name: config.models.get(name, ModelEntry()).model_copy(update={"catalogue": known})
        for name, known in named.items()
    }
    return config.model_copy(update={"models": {**config.models, **told}})


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
