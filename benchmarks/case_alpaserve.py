"""AlpaServe's simulator on known input: every request's outcome and finish time must be ours too.

A folder holds trace.csv, models.json, cluster.json, placements.json, results.json and, for some
policies, outcomes/<policy>.csv.gz. Its semantics (`fast_sim` of alpa-projects/mms): batches of one,
first come first served on each pipeline stage, dispatch to the group whose last stage is free
first, rejection on arrival if the predicted finish misses the deadline.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Comparison, Row

from modelium.control.costs import INSTANT, ConfiguredFacts
from modelium.core import Action, ClusterState, Event, Gpu, Load, Model, Node, Slo, Tick
from modelium.errors import RecordError, did_you_mean
from modelium.sim import SimInput, simulate
from modelium.sim.spec import Admission, Infer, Settings
from modelium.traces import Trace
from modelium.traces.trace import Labels

PENALTY_PER_STAGE = 0.009
"""Stage latencies grow by this share for each stage of the pipeline, in single precision."""
OVERHEAD_S = 0.011
"""Added to each answer; it does not occupy the GPU."""


@dataclass(frozen=True)
class Case:
    """One folder."""

    trace: Trace
    ids: list[str]
    """Of the trace's requests, by which the outcomes name them."""
    models: dict[str, Any]
    profiles: dict[str, Any]
    placements: dict[str, Any]
    results: dict[str, Any]
    folder: Path


class Placed:
    """A given placement, group by group, at time 0."""

    answers_misses = False
    every_s = None

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._groups = groups

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Load everything at the first tick."""
        if isinstance(event, Tick) and not state.instances:
            for k, group in enumerate(self._groups):
                for model in dict.fromkeys(group["models"]):
                    yield Load(model, (f"group{k}",), f"given: group {k}")


def run(folder: Path) -> Comparison:
    """Replay every placement of the folder that has results. Raises RecordError for other forms."""
    case = read(folder)
    rows: list[Row] = []
    for policy, theirs in case.results.items():
        if "fast_sim" not in theirs or policy not in case.placements:
            continue
        good, finish_s = replay(case, case.placements[policy])
        rows.append(Row(policy, "good_count", int(good.sum()), theirs["fast_sim"]["good"]))
        file = folder / "outcomes" / f"{policy}.csv.gz"
        if file.is_file():
            rows += _outcomes(policy, file, case.ids, good, finish_s)
    if not rows:
        raise RecordError(f"{folder}: results.json has no policy with 'fast_sim' and a placement")
    return Comparison("their placements, stage latencies and deadlines; nothing is fitted", rows)


def read(folder: Path) -> Case:
    """Read a folder. Raises RecordError naming the file that is missing or wrong."""
    tables = {}
    for name in ("models", "placements", "results"):
        file = folder / f"{name}.json"
        try:
            tables[name] = json.loads(file.read_text())
        except OSError as error:
            raise RecordError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            raise RecordError(f"{file}: {error}") from None
    models = tables["models"]["models"]
    return Case(
        *_trace(folder, list(models)), models, tables["models"]["profiles"],
        tables["placements"], tables["results"]["results"], folder,
    )  # fmt: skip


def replay(case: Case, placement: Any) -> tuple[np.ndarray, np.ndarray]:
    """Outcome and finish time of every request; a list of placements is played one by one.

    Clockwork++ changes the placement at given times: all queues start empty, at no cost.
    """
    if isinstance(placement, list):
        return _segment(case, case.trace, placement)
    starts = np.array(placement["start_times_s"][1:])
    cuts = np.searchsorted(case.trace.arrival_s, starts, side="right")
    edges = [0, *cuts.tolist(), len(case.trace)]
    parts = [
        _segment(case, case.trace.take(np.arange(begin, end)), groups)
        for begin, end, groups in zip(edges, edges[1:], placement["placements"], strict=False)
        if end > begin
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _segment(
    case: Case, trace: Trace, groups: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    run = simulate(_world(case, groups), Placed(groups), trace)
    good = run.requests["slo_met"].to_numpy()
    finish_s = run.requests["finish_s"].to_numpy()
    return good, np.where(good, finish_s, trace.arrival_s)


def _world(case: Case, groups: list[dict[str, Any]]) -> SimInput:
    """A group is one device with its own kind: the pipeline that it is configured as."""
    gpus = [Gpu(f"group{k}", "node0", 1 << 50, _kind(group)) for k, group in enumerate(groups)]
    models = [
        Model(name, 1, slo=Slo(e2e_s=float(np.float32(facts["slo_s"]))))
        for name, facts in case.models.items()
    ]
    return SimInput(
        nodes=[Node("node0")],
        gpus=gpus,
        models=models,
        engines=lambda model, kind: _engine(case, model.name, kind),
        work=lambda model, kind, prompt, output: 0.0,
        facts=ConfiguredFacts(default_stages=INSTANT),
        settings=Settings(
            router="shortest_queue", admission=Admission(deadline=True, absent="reject")
        ),
    )


def _kind(group: dict[str, Any]) -> str:
    return f"{group['dp']},{group['op']},{group['pp']}"


def _engine(case: Case, model: str, kind: str) -> Infer:
    wanted = [int(n) for n in kind.split(",")]
    for entry in case.profiles[case.models[model]["profile"]]:
        if [entry["dp"], entry["op"], entry["pp"]] == wanted:
            stages = entry["stage_latency_s"]["1"]
            slower = 1 + PENALTY_PER_STAGE * len(stages)
            return Infer(
                tuple((float(np.float32(s * slower)),) for s in stages), fixed_s=OVERHEAD_S
            )
    # Not placed in such a group; never used, but every pair must have an engine.
    return Infer(tuple((1e9,) for _ in range(wanted[2])))


def _trace(folder: Path, models: list[str]) -> tuple[Trace, list[str]]:
    """The requests by arrival, those of one instant by `idx`, however the file has them."""
    file = next((f for f in (folder / "trace.csv", folder / "trace.csv.gz") if f.is_file()), None)
    if file is None:
        raise RecordError(f"{folder}: no trace.csv")
    rows = list(_rows(file))
    code = {name: k for k, name in enumerate(models)}
    for line, row in enumerate(rows, 2):
        if row["model"] not in code:
            hint = did_you_mean(row["model"], models) or f" Known: {', '.join(models)}."
            raise RecordError(f"{file}, line {line}: no model {row['model']!r}.{hint}")
    rows.sort(key=lambda row: (float(row["arrival_s"]), int(row["idx"])))
    ones = np.ones(len(rows), np.int32)
    trace = Trace(
        np.array([float(row["arrival_s"]) for row in rows]),
        Labels(np.array([code[row["model"]] for row in rows], np.int32), tuple(models)),
        ones,
        ones,
        source=str(file),
    )
    return trace, [row["idx"] for row in rows]


def _rows(file: Path) -> Iterator[dict[str, str]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", newline="") as lines:
        yield from csv.DictReader(lines)


def _outcomes(
    policy: str, file: Path, ids: list[str], good: np.ndarray, finish_s: np.ndarray
) -> list[Row]:
    found = {row["idx"]: row for row in _rows(file)}
    theirs = [found[name] for name in ids]
    their_good = np.array([row["good"] == "1" for row in theirs])
    their_finish = np.array([float(row["finish_s"]) for row in theirs])
    both = good & their_good
    difference = float(np.abs(finish_s - their_finish)[both].max(initial=0.0))
    return [
        Row(policy, "outcome_disagreements", int((good != their_good).sum()), 0),
        Row(policy, "max_finish_difference_s", difference, 0.0),
    ]
