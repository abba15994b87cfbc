"""`modelium analyze`: what the model in a folder needs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

import click

from modelium.analyze import ModelFiles
from modelium.analyze import analyze as analyze_folder
from modelium.catalog import kind_of
from modelium.units import format_bytes


@click.command()
@click.argument("folder", type=click.Path(path_type=str))
@click.option(
    "--gpu", "names", multiple=True, metavar="NAME",
    help="GPU to check against; repeatable.  [default: all in the catalogue]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def analyze(folder: str, names: tuple[str, ...], as_json: bool) -> None:
    """Report what the model in FOLDER needs: memory, KV cache, runtime, GPUs.

    Reads config.json, safetensors headers and file sizes; never weights or pickles.
    """
    from modelium.config.planning.hardware import gpu_spec

    files = analyze_folder(folder)
    kinds = [gpu_spec(kind_of(name), None, {}) for name in names]
    sizes = {kind.name: files.sizes_on(kind) for kind in kinds} or files.tensor_parallel
    if as_json:
        plain = {kind: list(counts) for kind, counts in sizes.items()}
        click.echo(json.dumps(files.as_dict() | {"tensor_parallel": plain}, indent=2))
        return
    for label, text in _lines(files, sizes):
        click.echo(f"{label:<12}{text}")


def _lines(files: ModelFiles, sizes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    yield "model", f"{files.architecture or 'unknown architecture'}, {_described_files(files)}"
    if files.parameters is not None:
        yield "parameters", _described_parameters(files)
    yield "weights", _described_weights(files)
    if files.kv_bytes_per_token is not None:
        yield "KV cache", _described_kv(files)
    if files.max_context:
        yield "context", f"{files.max_context:,} tokens"
    yield "runtime", f"{files.runtime}: {files.runtime_reason}"
    label = "GPUs"
    alike: dict[tuple[int, ...], list[str]] = {}
    for kind, counts in sizes.items():
        alike.setdefault(counts, []).append(kind)
    for counts, kinds in sorted(alike.items(), reverse=True):
        numbers = ", ".join(map(str, counts)) or "-"
        for line in textwrap.wrap(", ".join(kinds), 68, break_on_hyphens=False):
            yield label, f"{numbers:<14}{line}"
            label = numbers = ""
    label = "not known"
    for note in files.unknown:
        yield label, note
        label = ""


def _described_files(files: ModelFiles) -> str:
    if not files.files:
        return "no weights" if files.format == "none" else f"{files.format}, by the index alone"
    return f"{files.format}, {files.files} file{'s' if files.files > 1 else ''}"


def _described_parameters(files: ModelFiles) -> str:
    text = _count(files.parameters or 0)
    if files.spec and files.spec.active_params < files.spec.params:
        text += f", {_count(files.spec.active_params)} of them active"
    return text


def _described_weights(files: ModelFiles) -> str:
    size = format_bytes(files.weights_bytes)
    return f"{size} ({', '.join(files.dtypes)})" if files.dtypes else size


def _described_kv(files: ModelFiles) -> str:
    text = f"{format_bytes(files.kv_bytes_per_token or 0)} per token ({files.attention})"
    shape = files.shape
    if shape and shape.sliding_layers:
        text += f"; {shape.sliding_layers} of {shape.layers} layers keep the last"
        text += f" {shape.sliding_window:,} tokens"
    return text


def _count(number: int) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
