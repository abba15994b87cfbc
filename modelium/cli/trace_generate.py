"""`modelium trace generate`: a trace from a law of popularity, load and lengths."""

from __future__ import annotations

import click

from modelium.cli.trace_options import LENGTHS, OUT, SEED, keyed, read_lengths, read_models, save
from modelium.units import parse_seconds


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
@LENGTHS
@click.option("--time-digits", default=6, show_default=True, help="Fewer make smaller files.")
@SEED
@OUT
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
    from modelium.traces.lengths import Lognormal

    workload = Workload(
        models=read_models(models),
        rate_per_s=rate,
        span_s=parse_seconds(duration),
        zipf=zipf,
        shuffle=shuffle,
        cv=cv,
        day_swing=day_swing,
        day_peak_h=day_peak,
        bursts=None if bursts is None else keyed(bursts, Bursts),
        lengths=read_lengths(lengths) or Lognormal(),
        time_digits=time_digits,
    )
    save(make(workload, seed), out)
