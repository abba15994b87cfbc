"""What `modelium simulate` and `modelium report` tell: the table, and what it rests on."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelium.errors import RecordError, one_line
from modelium.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from modelium.config import Plan
    from modelium.experiments.experiment import Prepared, Summary

WIDTH = 100


def collect(
    prepared: Prepared, folder: Path, runs: Mapping[Path, Summary], report: str
) -> dict[str, Any]:
    """Everything that a person is told, as plain values for JSON."""
    from modelium.config.planning.assumed import calibration
    from modelium.traces import describe

    plan, trace = prepared.plan, prepared.trace
    return {
        "trace": describe(trace).as_json(),
        "cluster": {"config": str(prepared.config or ""), **_cluster(plan)},
        "slos": _slos(plan),
        "assumptions": [*trace.notes, *prepared.assumed],
        "calibration": calibration(plan),
        "runs": [{"folder": str(place), **summary} for place, summary in runs.items()],
        "folder": str(folder),
        "report": report,
    }


def show(outcome: Mapping[str, Any]) -> None:
    """Print an outcome: first what was assumed, then the table, then where the report is."""
    from modelium.results.table import print_table

    say("Trace", _trace_line(outcome["trace"]))
    say("Cluster", _cluster_line(outcome["cluster"]))
    say("Costs", "; ".join(outcome["calibration"]))
    say("Assumed", one_line("; ".join(outcome["assumptions"])))
    say("SLO", "; ".join(outcome["slos"]))
    click.echo()
    print_table(outcome["runs"], console())
    click.echo()
    say("Report", outcome["report"])
    say("Tables", outcome["folder"])


def console() -> Console:
    """The terminal; elsewhere lines are as long as ours."""
    from rich.console import Console

    made = Console(highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH
    return made


def write_report(folders: Sequence[Path], file: Path) -> None:
    """Build one report of runs. Raises RecordError if a run cannot be read or the file written."""
    from modelium.results.record import Run
    from modelium.results.report import build
    from modelium.results.table import names

    runs = [Run.read(folder) for folder in folders]
    page = build(list(zip(names([run.summary for run in runs]), runs, strict=True)))
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{file}: cannot be written: {error.strerror}") from None


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it if it is a comparison, in the order of its table."""
    comparison = folder / "comparison.json"
    if not comparison.is_file():
        return [folder]
    try:
        told = json.loads(comparison.read_text(encoding="utf-8"))["runs"]
        return [folder / Path(run["folder"]).name for run in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{comparison}: cannot be read: {error}") from None


def say(head: str, text: str) -> None:
    """A line with a head; further lines are indented alike."""
    if text:
        indent = " " * 8
        click.echo(
            textwrap.fill(
                text,
                max(24, min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)),
                initial_indent=f"{head:<8}",
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _trace_line(trace: Mapping[str, Any]) -> str:
    facts = [
        trace["source"],
        counted(trace["models"], "model"),
        counted(trace["requests"], "request"),
        format_seconds(trace["span_s"]),
        f"top model {trace['skew']['top1']:.0%}",
        f"a model idles {trace['idle'][60]:.0%} of the time (gaps over 1 min)",
    ]
    return " · ".join(facts)


def _cluster(plan: Plan) -> dict[str, Any]:
    hardware, models = plan.hardware, [one.model for one in plan.models.values()]
    return {
        "gpus": dict(Counter(gpu.kind for gpu in hardware.gpus)),
        "nodes": len(hardware.nodes),
        "memory_bytes": sum(gpu.memory_bytes for gpu in hardware.gpus),
        "weights_bytes": sum(model.weights_bytes for model in models),
        "needed_bytes": sum(model.gpus * model.bytes_per_gpu() for model in models),
    }


def _cluster_line(cluster: Mapping[str, Any]) -> str:
    gpus = " + ".join(f"{count} × {kind}" for kind, count in cluster["gpus"].items())
    nodes = "one node" if cluster["nodes"] == 1 else f"{cluster['nodes']} nodes"
    source = f" (from {cluster['config']})" if cluster["config"] else ""
    return (
        f"{gpus} on {nodes}{source} · {format_bytes(cluster['memory_bytes'])} usable"
        f" · all models need {format_bytes(cluster['needed_bytes'])},"
        f" {format_bytes(cluster['weights_bytes'])} of it weights"
    )


def _slos(plan: Plan) -> list[str]:
    """Each SLO in words, with how many models have it; classes by name."""
    from modelium.config.planning.assumed import in_words

    counts = Counter(in_words(one.model.slo) for one in plan.models.values())
    told = [
        f"{slo} ({counted(n, 'model')})" if len(counts) > 1 else slo
        for slo, n in counts.most_common(3)
    ]
    more = [f"{len(counts) - 3} others"] * (len(counts) > 3)
    classes = [f"{name}: {in_words(slo)}" for name, slo in plan.slo_classes.items()]
    return told + more + classes
