"""`modelium add DIR [NAME]`: a folder of model files goes into the repository."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelium.cli.options import as_json
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.repository import ModelRepository, StoredModel


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", default="")
@click.option(
    "--runtime", type=click.Choice(["vllm", "triton", "ray"]), help="Override the detected runtime."
)
@click.option("--move", is_flag=True, help="Move the files instead of copying them.")
@click.option("--replace", is_flag=True, help="Replace the model that has this name.")
@as_json
def add(
    folder: Path, name: str, runtime: str | None, move: bool, replace: bool, as_json: bool
) -> None:
    """Add the model files in FOLDER to the repository, as NAME (default: the folder's name).

    The files are checked and analysed first. A server serves the new model from its next start; put
    the files into the repository's `incoming/` to have a running server serve it at once. With
    --replace, a running server keeps the old version until `modelium update NAME`.
    """
    from modelium.config import find, read
    from modelium.repository import ModelRepository

    path = find()
    config = read(path) if path else None
    if config is None or config.model_repository is None:
        raise ConfigError("no repository: set model_repository in the configuration")
    repository = ModelRepository(config.repository, allow_pickle=config.live.allow_pickle)
    if entry := config.models.get(name or folder.name):
        served = config.repository / entry.path if entry.path else None
        if why := repository.refuses(name or folder.name, served):
            raise ConfigError(why)
    source = folder
    if not move and folder.is_dir():
        source = repository.path / f".adding-{folder.name}"
        shutil.rmtree(source, ignore_errors=True)
    try:
        if source is not folder:
            shutil.copytree(folder, source, symlinks=True)
        model = _add(repository, source, name or folder.name, runtime or "", replace)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be added: {error}") from None
    finally:
        if source is not folder:
            shutil.rmtree(source, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(asdict(model), indent=2))
    else:
        click.echo(f"{model.name} is in {repository.path}: {model.runtime}, {model.runtime_reason}")


def _add(
    repository: ModelRepository, source: Path, name: str, runtime: str, replace: bool
) -> StoredModel:
    if not replace or all(model.name != name for model in repository.list_models()):
        return repository.add_model_from_incoming(source, name, runtime)
    with repository.replacing(source, name, runtime) as model:
        return model
