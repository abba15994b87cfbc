"""`modelium trace generate`: a trace from a law of popularity, load and lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelium.errors import ConfigError, TraceError, did_you_mean
from modelium.units import parse_seconds

if TYPE_CHECKING:
    from modelium.traces.lengths import Lengths

T = TypeVar("T")


@click.command()
@click.option(
    "--models",
    required=True,
    metavar="N|NAMES|FILE",
    help="How many; or names with commas; or a file, one name a line. Most popular first.",
)
@click.option("--rate", default=1.0, show_default=True, help="Requests per second in all.")
@click.option("--duration", default="1h", show_default=True, metavar="TIME")
@click.option("--zipf", default=1.0, show_default=True, help="Exponent of popularity, 0: even.")
@click.option("--shuffle", is_flag=True, help="Deal the ranks of popularity at random.")
@click.option("--cv", default=1.0, show_default=True, help="Of gaps; 1: Poisson, else Gamma.")
@click.option(
    "--day-swing", default=0.0, show_default=True, help="0 to 1: up by day, down by night."
)
@click.option("--day-peak", default=15.0, show_default=True, help="Hour of the day's peak.")
@click.option(
    "--bursts",
    metavar="KEY=VALUE,...",
    help="Loud and quiet spells: on_s, off_s, quiet, groups, together.",
)
@click.option(
    "--lengths",
    metavar="FILE|KEY=VALUE,...",
    help="Drawn from a trace or list of lengths; or lognormal: prompt_mean, prompt_cv, "
    "prompt_limit, output_mean, output_cv, output_limit.",
)
@click.option("--time-digits", default=6, show_default=True, help="Fewer make smaller files.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("-o", "--out", required=True, metavar="FILE", help=".csv, .csv.gz or .parquet")
def generate(
    models: str,
    rate: float,
    duration: str,
    zipf: float,
    shuffle: bool,
    cv: float,
    day_swing: float,
    day_peak: float,
    bursts: str | None,
    lengths: str | None,
    time_digits: int,
    seed: int,
    out: str,
) -> None:
    """Make a trace. All rates are long-run means, and bursts keep them."""
    from modelium.traces.generate import Bursts, Workload
    from modelium.traces.generate import generate as make
    from modelium.traces.own import write_trace

    workload = Workload(
        models=_models(models),
        rate_per_s=rate,
        span_s=parse_seconds(duration),
        zipf=zipf,
        shuffle=shuffle,
        cv=cv,
        day_swing=day_swing,
        day_peak_h=day_peak,
        bursts=None if bursts is None else keyed(bursts, Bursts),
        lengths=read_lengths(lengths),
        time_digits=time_digits,
    )
    trace = make(workload, seed)
    write_trace(trace, out)
    click.echo(f"{out}: {len(trace):,} requests, {len(trace.model.names)} models", err=True)


def read_lengths(text: str | None) -> Lengths:
    """Read the option --lengths: a file of observed lengths, or the parameters of a lognormal."""
    from modelium.traces.lengths import Drawn, Lognormal

    if text is None:
        return Lognormal()
    return keyed(text, Lognormal) if "=" in text else Drawn.from_file(text)


def keyed(text: str, kind: type[T]) -> T:
    """Read "key=value,..." as the fields of a dataclass. Raises ConfigError for a wrong key."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in fields:
            hint = did_you_mean(key, fields) or f" It has: {', '.join(fields)}."
            raise ConfigError(f"{kind.__name__.lower()} have no {key!r} in {text!r}.{hint}")
        number = parse_seconds(value) if key.endswith("_s") else _number(key, value)
        values[key] = int(number) if fields[key].type == "int" else number
    return kind(**values)


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(f"{key} is {value!r}, expected a number") from error


def _models(text: str) -> tuple[str, ...]:
    if text.isdigit():
        return tuple(f"model-{i:0{len(text)}d}" for i in range(int(text)))
    if Path(text).is_file():
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise TraceError(f"--models {text!r} has an empty name")
    return names
