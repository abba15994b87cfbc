"""`modelium trace generate`: a trace from a law of popularity, load and lengths."""

from __future__ import annotations

import click

from modelium.cli.trace.options import LENGTHS, OUT, SEED, keyed, read_lengths, read_models, save
from modelium.units import parse_seconds


@click.command()
@click.option(
    "--models",
    required=True,
    metavar="N|NAMES|FILE",
    help="Number of models, names with commas, or a file with a name per line; most popular first.",
)
@click.option("--rate", default=1.0, show_default=True, help="Total requests per second.")
@click.option("--duration", default="1h", show_default=True, metavar="TIME")
@click.option(
    "--zipf", default=1.0, show_default=True, help="Zipf exponent of popularity; 0 is uniform."
)
@click.option("--shuffle", is_flag=True, help="Assign popularity ranks at random.")
@click.option(
    "--cv",
    default=1.0,
    show_default=True,
    help="CV of interarrival times; 1 is Poisson, else Gamma.",
)
@click.option(
    "--day-swing", default=0.0, show_default=True, help="Daily swing of the load, 0 to 1."
)
@click.option("--day-peak", default=15.0, show_default=True, help="Hour of the daily peak.")
@click.option(
    "--bursts",
    metavar="KEY=VALUE,...",
    help="On/off bursts: on_s, off_s, quiet, groups, together.",
)
@LENGTHS
@click.option(
    "--time-digits",
    default=6,
    show_default=True,
    help="Decimals of arrival times; fewer make smaller files.",
)
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
    """Generate a synthetic trace. Rates are long-run means, which bursts preserve."""
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
