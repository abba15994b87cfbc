"""Options that the commands of `modelium trace` share."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelium.errors import ConfigError, did_you_mean, one_line
from modelium.units import counted, parse_seconds

if TYPE_CHECKING:
    from modelium.traces.lengths import Lengths
    from modelium.traces.trace import Trace

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

MOST_MODELS = 1_000_000
OUT = click.option("-o", "--out", required=True, metavar="FILE", help=".csv, .csv.gz or .parquet")
LENGTHS = click.option(
    "--lengths",
    metavar="FILE|KEY=VALUE,...",
    help="Sample lengths from a file, or from a lognormal: prompt_mean, prompt_cv, "
    "prompt_limit, output_mean, output_cv, output_limit.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed."
)


def reading(command: Command) -> Command:
    """Add the options that say how to read what a file leaves open."""
    for option in (
        SEED,
        click.option("--model", metavar="NAME", help="Model name, for formats without one."),
        click.option("--scale", default=1.0, help="Share of the requests to keep while reading."),
    ):
        command = option(command)
    return command


def read_lengths(text: str | None) -> Lengths | None:
    """Read --lengths: a file of observed lengths, or the parameters of a lognormal."""
    from modelium.traces.lengths import Drawn, Lognormal
    from modelium.traces.read import read_trace

    if text is None:
        return None
    return keyed(text, Lognormal) if "=" in text else Drawn.of(read_trace(text), text)


def keyed(text: str, kind: type[T]) -> T:
    """Read "key=value,..." as the fields of a dataclass. Raises ConfigError for a wrong key."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in fields:
            hint = did_you_mean(key, fields) or f" It has: {', '.join(fields)}."
            raise ConfigError(f"{kind.__name__.lower()} has no {key!r} (in {text!r}).{hint}")
        values[key] = _value(fields[key], value)
    return kind(**values)


def _value(field: dataclasses.Field[Any], text: str) -> float:
    """What `text` says, as the field's type wants it: seconds, a whole number or any number."""
    if field.name.endswith("_s"):
        return parse_seconds(text)
    whole = field.type == "int"
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        wanted = "a whole number" if whole else "a number"
        raise ConfigError(f"{field.name} is {text!r}, expected {wanted}") from error


def read_models(text: str) -> tuple[str, ...]:
    """Read how many models there are, or their names, or a file with one name a line."""
    if re.fullmatch(r"[+-]?\d+", text):
        if not 0 < int(text) <= MOST_MODELS:
            raise ConfigError(f"{text} models, expected 1 to {MOST_MODELS:,}")
        return tuple(f"model-{i:0{len(text)}d}" for i in range(int(text)))
    if os.path.isfile(text):  # unlike Path.is_file, takes names that are too long for a file
        lines = Path(text).read_text(encoding="utf-8", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise ConfigError(f"{text!r} has an empty name, expected names with commas between")
    return names


def save(trace: Trace, out: str) -> None:
    """Write a trace and say, on stderr, what was written and what it rests on."""
    from modelium.traces.native_format import write_trace

    write_trace(trace, out)
    tell(trace)
    click.echo(
        f"{out}: {counted(len(trace), 'request')}, {counted(len(trace.model.names), 'model')}",
        err=True,
    )


def tell(trace: Trace) -> None:
    """Say on stderr what reading or making the trace had to assume."""
    for note in dict.fromkeys(trace.notes):
        click.echo(f"note: {one_line(note)}", err=True)
