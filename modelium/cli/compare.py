"""`modelium compare`: all policies on one trace, or finished runs side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from modelium.cli.simulate import FILE, simulate
from modelium.errors import ConfigError

Summary = Mapping[str, Any]


def _options() -> list[click.Parameter]:
    """Those of `simulate`; the trace may be left out."""
    options = [copy.copy(option) for option in simulate.params if option.name != "bounds"]
    for option in options:
        option.required = False
        if option.name == "policies":
            assert isinstance(option, click.Option)
            option.help = "Any number of times; all that there are, if none is given."
    return [click.Argument(["folders"], nargs=-1, type=FILE, metavar="[RUN]..."), *options]


@click.command(params=_options())
def compare(folders: tuple[Path, ...], **options: Any) -> None:
    """Compare policies with each other and with an upper bound that no policy can beat.

    With --trace, simulates every policy (including `belady_cost`, which knows the future) and
    computes bounds; this is `simulate` with other defaults. With folders of finished runs,
    simulated or live, prints them side by side and lists what differs besides the policy.
    """
    if folders:
        _refuse_others(click.get_current_context())
        _finished(folders, options["as_json"])
    elif options["trace"] is None:
        raise ConfigError("name a trace to play (--trace FILE), or the folders of finished runs")
    else:
        from modelium.plugins.registry import names

        policies = options.pop("policies") or tuple(names())
        click.get_current_context().invoke(simulate, bounds=True, policies=policies, **options)


def _refuse_others(ctx: click.Context) -> None:
    """An option that would do nothing is a mistake."""
    for option in ctx.command.params:
        given = ctx.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        if given and option.name not in ("folders", "as_json"):
            raise ConfigError(f"{option.opts[0]} is for runs to be played, not for finished ones")


def _finished(folders: Sequence[Path], as_json: bool) -> None:
    """Print the table of runs that are there."""
    from modelium.cli.outcome import runs_in
    from modelium.results.record import Run

    places = [run for folder in folders for run in runs_in(folder)]
    summaries = [Run.read(place).summary for place in places]
    differ = list(_differences(summaries))
    if as_json:
        rows = [{"folder": str(p), **s} for p, s in zip(places, summaries, strict=True)]
        told = {"runs": rows, "differ": differ}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from modelium.cli.outcome import console, say
    from modelium.results.table import names, print_table

    labels = [f"{n}\n  {place}" for n, place in zip(names(summaries), places, strict=True)]
    print_table(summaries, console(), labels)
    click.echo()
    for words in differ:
        say("Differ", words)
    say("Report", "modelium report " + " ".join(map(str, folders)))


def _differences(summaries: Sequence[Summary]) -> Iterator[str]:
    """What besides the policy is not the same: such figures do not compare policies alone."""
    kinds: dict[str, Callable[[Summary], object]] = {
        "trace": lambda s: s["trace"],
        "requests": lambda s: f"{s['requests']['arrived']:,}",
        "GPUs": _gpus,
        "SLOs": _limits,
        "modelium": lambda s: s["versions"].get("modelium", ""),
    }
    for what, read in kinds.items():
        found = list(dict.fromkeys(str(read(summary)) for summary in summaries))
        if len(found) > 1:
            yield f"{what}: {' · '.join(found)}"


def _limits(summary: Summary) -> str:
    """Each SLO, whatever number of models has it."""
    limits = [{k: v for k, v in slo.items() if k != "models"} for slo in summary["slos"] or ()]
    return json.dumps(sorted(limits, key=json.dumps))


def _gpus(summary: Summary) -> str:
    kinds = [gpu["kind"] for gpu in summary["gpus"]]
    return " + ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
