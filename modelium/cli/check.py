"""`modelium check`: is this machine, and the configuration, as it should be?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from modelium.errors import one_line

COLOURS = {"ok": "green", "note": "yellow", "wrong": "red"}


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file.  [default: searched for]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(ctx: click.Context, config: Path | None, as_json: bool) -> None:
    """Validate Python, packages, GPUs, configuration and disk; exit code 2 on errors."""
    from modelium.cli.diagnosis import diagnose

    findings = diagnose(config)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            verdict = click.style(f"{finding.verdict:<5}", COLOURS[finding.verdict])
            click.echo(f"{verdict} {finding.what:<11} {one_line(finding.says)}")
    ctx.exit(2 if any(finding.verdict == "wrong" for finding in findings) else 0)
