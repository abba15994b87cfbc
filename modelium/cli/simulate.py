"""`modelium simulate`: play a trace against one policy or several."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelium.errors import ConfigError
from modelium.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from modelium.experiments.experiment import Job, Prepared, Summary

DEFAULT_POLICIES = (DEFAULT_POLICY, "gdsf", "lru")
FILE = click.Path(path_type=Path)


@click.command()
@click.option("--trace", required=True, type=FILE, help="Request trace.")
@click.option("--config", type=FILE, help="Configuration file.  [default: searched for]")
@click.option(
    "--policy", "policies", multiple=True, metavar="NAME[:KEY=VALUE,...]",
    help="Policy to run; repeatable.  [default: the configuration's; ilp, gdsf, lru]",
)  # fmt: skip
@click.option(
    "--models", default="", metavar="NAME=MODEL,...",
    help="Catalogue model for each name in the trace; names without '=' are assigned round-robin.",
)  # fmt: skip
@click.option(
    "--gpus", default="", metavar="FLEET", help="Fleet, such as 4xh100-80g or 2x8xh100-80g+4xl4."
)
@click.option(
    "--seed", "seeds", multiple=True, default=(0,), type=click.IntRange(0),
    help="Random seed; repeatable.",
)  # fmt: skip
@click.option("--router", metavar="NAME", help="How to choose among a model's ready instances.")
@click.option("--out", type=FILE, help="Folder for results.  [default: runs/TRACE-POLICY]")
@click.option("--force", is_flag=True, help="Overwrite results in that folder.")
@click.option("--jobs", type=click.IntRange(1), help="Parallel runs.  [default: one per CPU]")
@click.option("--bounds", is_flag=True, help="Also compute upper bounds (docs/bounds.md).")
@click.option("--no-report", is_flag=True, help="Write tables only.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def simulate(
    trace: Path,
    config: Path | None,
    policies: tuple[str, ...],
    models: str,
    gpus: str,
    seeds: tuple[int, ...],
    router: str | None,
    out: Path | None,
    force: bool,
    jobs: int | None,
    bounds: bool,
    no_report: bool,
    as_json: bool,
) -> None:
    """Simulate a request trace under one or more policies, and compare them.

    Model names in the trace are looked up in the catalogue and GPUs are chosen to fit, unless a
    configuration or options say otherwise. Assumptions are printed first.
    """
    # Nothing here multiplies matrices, and threads that wait for some cost a tenth of a second;
    # as much goes into looking for garbage, of which imports leave none. Runs look for theirs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    from modelium.cli.outcome import collect, show, write_report
    from modelium.experiments.experiment import Experiment, prepare
    from modelium.results.record import new_folder

    prepared = prepare(Experiment(trace, config, models, gpus, router or ""))
    asked = policies or prepared.plan.policies or DEFAULT_POLICIES
    for policy in asked:
        prepared.policy(policy, seed=0)  # a wrong one is told before the first is played
    name = "compare" if len(asked) * len(seeds) > 1 else _plain(asked[0])
    folder = out or _unused(Path("runs") / f"{_stem(trace)}-{name}")
    with new_folder(folder, replace=force) as part:
        limits = _limits(prepared) if bounds else None
        plays = [replace(job, bounds=limits) for job in _jobs(asked, seeds, part)]
        summaries = _play(prepared, plays, jobs or os.cpu_count() or 1)
        final = [folder / play.folder.relative_to(part) for play in plays]
        if not no_report:
            write_report([play.folder for play in plays], part / "report.html")
        report = "" if no_report else str(folder / "report.html")
        outcome = collect(prepared, folder, dict(zip(final, summaries, strict=True)), report)
        text = json.dumps(outcome, indent=2, ensure_ascii=False, allow_nan=False)
        if len(plays) > 1:
            (part / "comparison.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        show(outcome)


def _jobs(policies: Sequence[str], seeds: Sequence[int], folder: Path) -> list[Job]:
    """Every policy with every seed; several get a folder each inside `folder`."""
    from modelium.experiments.experiment import Job

    pairs = [(policy, seed) for policy in policies for seed in seeds]
    for policy, seed in pairs:
        if pairs.count((policy, seed)) > 1:
            raise ConfigError(f"--policy {policy} with --seed {seed} is there twice")
    command = shlex.join(["modelium", *sys.argv[1:]])
    jobs = []
    for policy, seed in pairs:
        name = _plain(policy) + (f"-seed{seed}" if len(seeds) > 1 else "")
        place = folder / name if len(pairs) > 1 else folder
        jobs.append(Job(policy, seed, place, command))
    return jobs


def _limits(prepared: Prepared) -> Mapping[str, float | None]:
    """What no policy can exceed."""
    from modelium.experiments.experiment import bounds_of

    with _progress("Bounding what any policy could reach", 1.0) as advance:
        return bounds_of(prepared, advance)


def _play(prepared: Prepared, jobs: Sequence[Job], processes: int) -> list[Summary]:
    """The summaries in the order of `jobs`."""
    from modelium.experiments.experiment import play_all

    done = {}
    words = "Simulating (the very first time, a minute goes to compiling)"
    with _progress(words, len(jobs)) as advance:
        for i, summary in play_all(prepared, jobs, processes):
            done[i] = summary
            advance(1.0)
    return [done[i] for i in range(len(jobs))]


@contextmanager
def _progress(words: str, total: float) -> Iterator[Callable[[float], object]]:
    """What is to be told of work done, while a bar shows it: on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(words, total=total)
        yield lambda share: progress.advance(bar, share)


def _plain(policy: str) -> str:
    """A policy with its parameters as the name of a folder."""
    return re.sub(r"[^\w.=-]+", "-", policy).strip("-.")


def _stem(trace: Path) -> str:
    return trace.name.split(".")[0] or "trace"


def _unused(folder: Path) -> Path:
    """This folder, or else the first of folder-2, folder-3, … that does not exist."""
    candidates = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return folder if not folder.exists() else next(c for c in candidates if not c.exists())
