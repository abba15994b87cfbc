"""`modelium trace convert`: any known format to Modelium's own."""

from __future__ import annotations

import click

from modelium.cli.trace.options import LENGTHS, OUT, read_lengths, reading, save


@click.command()
@click.argument("file")
@LENGTHS
@reading
@OUT
def convert(
    file: str, lengths: str | None, seed: int, model: str | None, scale: float, out: str
) -> None:
    """Convert FILE from any known format to Modelium's own."""
    from modelium.traces import read_trace

    trace = read_trace(file, seed=seed, model=model, lengths=read_lengths(lengths), scale=scale)
    save(trace, out)
