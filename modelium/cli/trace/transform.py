"""`modelium trace transform`: cut, merge, map, redraw, thin and speed up traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelium.cli.trace.options import LENGTHS, OUT, read_lengths, read_models, reading, save
from modelium.errors import ConfigError
from modelium.units import parse_seconds

if TYPE_CHECKING:
    from modelium.traces.trace import Trace


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--cut", metavar="FROM,TO", help="Keep this time range, such as 6h,30h.")
@click.option("--split", metavar="TIME", help="Split into train (before) and test (after).")
@click.option(
    "--part", type=click.Choice(["train", "test"]), help="Which part of the split to keep."
)
@click.option("--map-to", metavar="N|NAMES|FILE", help="Map the names in the file to these models.")
@click.option(
    "--map-how",
    type=click.Choice(["stripe", "popularity"]),
    show_default="stripe",
    help="Round-robin (evens popularity out) or blocks by popularity (keeps the skew).",
)
@click.option(
    "--map-by",
    type=click.Choice(["model", "organization", "session", "slo_class"]),
    show_default="model",
    help="Column to map.",
)
@click.option(
    "--spread", metavar="TIME", help="Undo rounding of arrival times to multiples of this."
)
@click.option(
    "--resample",
    metavar="WINDOW",
    help="Redraw arrivals from a Gamma process per model and window.",
)
@click.option("--cv", type=float, help="With --resample: scale burstiness.")
@click.option("--rate", default=1.0, show_default=True, help="Scale the load.")
@click.option("--speed", default=1.0, show_default=True, help="Speed-up: divide all times.")
@click.option("--sample", type=int, metavar="N", help="Keep N random requests.")
@LENGTHS
@reading
@OUT
def transform(
    files: tuple[str, ...],
    cut: str | None,
    split: str | None,
    part: str | None,
    map_to: str | None,
    map_how: str | None,
    map_by: str | None,
    spread: str | None,
    resample: str | None,
    cv: float | None,
    rate: float,
    speed: float,
    sample: int | None,
    lengths: str | None,
    seed: int,
    model: str | None,
    scale: float,
    out: str,
) -> None:
    """Merge and transform FILES; steps are applied in the order of the options below."""
    from modelium import traces

    if (split is None) != (part is None):
        raise ConfigError("--split and --part go together: where to cut, and which part to keep")
    if cv is not None and resample is None:
        raise ConfigError("--cv needs --resample WINDOW: only redrawn arrivals change burstiness")
    if map_to is None and (map_how or map_by):
        raise ConfigError("--map-how and --map-by need --map-to: the models that names stand for")
    trace = traces.merge(
        [traces.read_trace(file, seed=seed, model=model, scale=scale) for file in files]
    )
    if cut is not None:
        trace = traces.cut(trace, *_times(cut))
    if split is not None:
        trace = traces.split(trace, parse_seconds(split))[0 if part == "train" else 1]
    if map_to is not None:
        trace = traces.map_models(
            trace, read_models(map_to), map_how or "stripe", map_by or "model"
        )
    if spread is not None:
        trace = traces.spread(trace, parse_seconds(spread), seed)
    trace = _load(trace, resample, rate, 1.0 if cv is None else cv, seed, part or "")
    if speed != 1.0:
        trace = traces.speed_up(trace, speed)
    if sample is not None:
        trace = traces.sample(trace, sample, seed)
    if (law := read_lengths(lengths)) is not None:
        trace = traces.with_lengths(trace, law, seed)
    save(trace, out)


def _load(trace: Trace, window: str | None, rate: float, cv: float, seed: int, part: str) -> Trace:
    """Change the load: by redrawing arrivals if a window is given, else by thinning or copies."""
    from modelium import traces

    if window is not None:
        return traces.resample(trace, parse_seconds(window), rate=rate, cv=cv, seed=seed, part=part)
    return trace if rate == 1.0 else traces.scale_rate(trace, rate, seed)


def _times(text: str) -> tuple[float, float]:
    start, comma, end = text.partition(",")
    if not comma:
        raise ConfigError(f"--cut is {text!r}, expected two times such as 6h,30h")
    return parse_seconds(start), parse_seconds(end)
