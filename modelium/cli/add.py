"""`modelium add DIR [NAME]`: a folder of model files goes into the repository."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import click

from modelium.cli.options import as_json
from modelium.errors import ConfigError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", default="")
@click.option("--runtime", type=click.Choice(["vllm", "triton", "ray"]), help="Instead of ours.")
@click.option("--move", is_flag=True, help="Move the files instead of copying them.")
@as_json
def add(folder: Path, name: str, runtime: str | None, move: bool, as_json: bool) -> None:
    """Add the model files in FOLDER to the repository, as NAME (its own, if not given).

    They are checked and analysed first; a server serves the new model from its next start on, and
    a running one at once if the files are put into the repository's `incoming/` instead.
    """
    from modelium.config import find, read
    from modelium.repository import ModelRepository

    path = find()
    config = read(path) if path else None
    if config is None or config.model_repository is None:
        raise ConfigError("no repository: set model_repository in the configuration")
    repository = ModelRepository(config.repository, allow_pickle=config.live.allow_pickle)
    source = folder
    if not move and folder.is_dir():
        source = repository.path / f".adding-{folder.name}"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(folder, source, symlinks=True)
    try:
        model = repository.add_model_from_incoming(source, name or folder.name, runtime or "")
    finally:
        if source is not folder:
            shutil.rmtree(source, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(asdict(model), indent=2))
    else:
        click.echo(f"{model.name} is in {repository.path}: {model.runtime}, {model.runtime_reason}")
