"""What Triton needs to serve a model folder: `config.pbtxt` and a folder "1" of a repository.

Weights are never copied: what is written holds links to them, or their path. ONNX and TorchScript
files are served by Triton's own backends where the server has them, and else by its Python backend
with onnxruntime and torch; Hugging Face folders by the Python backend with transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelium.errors import did_you_mean
from modelium.managers import settings
from modelium.managers.engine import Order, StartError
from modelium.managers.triton.layout import Layout

CONFIG = "config.pbtxt"
OURS = Path(__file__).parent / "models"
OURS_MARK = ".modelium"
"""A file in each entry that was written here."""
DESCRIBE_S = 120.0
_PLAIN = r"[\w-][\w.-]{0,79}"
TASKS = ("generate", "embed", "classify")
_BATCH = {
    "embed": {"name": "embedding", "data_type": "TYPE_FP32", "dims": [-1, -1]},
    "classify": {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, -1]},
}

Config = dict[str, Any]


def entry_name(instance: str) -> str:
    """A name that needs no quoting in paths and addresses, another one for every instance."""
    stem, mark, number = instance.rpartition("#")
    if mark and number.isascii() and number.isdigit() and re.fullmatch(_PLAIN, stem, re.A):
        return f"{stem}~{number}"
    if re.fullmatch(_PLAIN, instance, re.A):
        return instance
    plain = re.sub(r"[^\w-]", "_", instance, flags=re.A)[:60]
    return f"{plain}~{hashlib.sha256(instance.encode()).hexdigest()[:10]}"


def write(
    repository: Path, entry: str, order: Order, layout: Layout | None, gpu: int | None
) -> str:
    """Write the entry for `order` and return the kind of its model; with `gpu` None for CPUs.

    `layout` is the server's, None if another one is used whose backends are not known.
    Raises StartError.
    """
    folder, place = order.path, repository / entry
    if folder is None or not folder.is_dir():
        raise StartError(f"{order.model}: its files are not at {folder}", final=True)
    _check_settings(order)
    if place.exists() and place.resolve() == folder.resolve():
        return "triton"  # it lies where the server looks for it
    erase(repository, entry)
    if place.exists():
        raise StartError(f"{order.model}: {place} is somebody else's; move it away", final=True)
    version = place / "1"
    version.mkdir(parents=True)
    (place / OURS_MARK).touch()
    try:
        kind, make = _kind(folder.resolve(), order)
        config = make(version, folder.resolve(), order, layout)
        _complete(config, entry, order, gpu)
        (place / CONFIG).write_text(_as_text(config, order), encoding="utf-8")
    except BaseException:
        erase(repository, entry)
        raise
    return kind


def erase(repository: Path, entry: str) -> None:
    """Remove what `write` made, and nothing else."""
    if (repository / entry / OURS_MARK).exists():
        shutil.rmtree(repository / entry, ignore_errors=True)


Maker = Callable[[Path, Path, Order, Layout | None], Config]


def _kind(folder: Path, order: Order) -> tuple[str, Maker]:
    if (folder / CONFIG).is_file():
        return "triton", _own
    if (folder / "model.py").is_file():
        return "python", _python
    if sorted(folder.glob("*.onnx")):
        return "onnx", _onnx
    if sorted(folder.glob("*.pt")):
        return "torchscript", _torchscript
    if (folder / "config.json").is_file():
        return f"transformers/{_task(folder, order)}", _transformers
    raise StartError(
        f"{order.model}: {folder} holds nothing that Triton serves; expected {CONFIG}, model.py,"
        " *.onnx, *.pt or config.json",
        final=True,
    )


def _own(version: Path, folder: Path, order: Order, layout: Layout | None) -> Config:
    """A model of a Triton repository, with its own configuration."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    place = version
    if any(path.name.isdecimal() and path.is_dir() for path in folder.iterdir()):
        version.rmdir()
        place = version.parent
    _link(folder, place)
    (place / CONFIG).unlink()  # another one comes in its place
    try:
        parsed = text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise StartError(f"{order.model}: {folder / CONFIG}: {error}", final=True) from error
    config: Config = json_format.MessageToDict(parsed, preserving_proto_field_name=True)
    if not config.get("backend") and not config.get("platform"):
        config["backend"] = "python"
    return config


def _python(version: Path, folder: Path, order: Order, layout: Layout | None) -> Config:
    """A user's model.py; what it takes and gives has to be said."""
    _link(folder, version)
    if not order.settings.get("input") or not order.settings.get("output"):
        raise StartError(
            f"{order.model}: nothing says which tensors its model.py takes and gives; put a"
            f" {CONFIG} beside it, or give `input` and `output` as lists of name, data_type, dims",
            final=True,
        )
    return {"backend": "python"}


def _onnx(version: Path, folder: Path, order: Order, layout: Layout | None) -> Config:
    file = _one(folder, "*.onnx", "model.onnx", order)
    if layout is None or layout.has("onnxruntime"):
        _link(folder, version)  # with the files beside it that hold its weights
        (version / file.name).rename(version / "model.onnx")
        return {"backend": "onnxruntime"}
    return _ours(version, "onnx_model.py", {"file": file}) | _described(layout, file, order)


def _torchscript(version: Path, folder: Path, order: Order, layout: Layout | None) -> Config:
    file = _one(folder, "*.pt", "model.pt", order)
    if layout is not None and not layout.has("pytorch"):
        more = _described(layout, file, order)
        return _ours(version, "torchscript_model.py", {"file": file}) | more
    (version / "model.pt").symlink_to(file)
    tensor = {"data_type": "TYPE_FP32", "dims": [-1, -1]}
    return {
        "backend": "pytorch",
        "input": [{"name": "INPUT__0", **tensor}],
        "output": [{"name": "OUTPUT__0", **tensor}],
    }


def _transformers(version: Path, folder: Path, order: Order, layout: Layout | None) -> Config:
    task = _task(folder, order)
    told = {"path": folder, "task": task, "dtype": order.settings.get("dtype", "auto")}
    count = {"data_type": "TYPE_INT32", "dims": [-1] if task in _BATCH else [1]}
    tensors: Config = {
        "input": [{"name": "text_input", "data_type": "TYPE_STRING", "dims": [-1]}],
        "output": [{"name": "prompt_tokens", **count}],
    }
    if task in _BATCH:
        tensors["output"].insert(0, _BATCH[task])
    else:
        one = {"dims": [1], "optional": True}
        tensors["input"][0]["dims"] = [1]
        tensors["input"] += [
            {"name": "max_tokens", "data_type": "TYPE_INT32", **one},
            {"name": "temperature", "data_type": "TYPE_FP32", **one},
        ]
        text = {"name": "text_output", "data_type": "TYPE_STRING", "dims": [1]}
        tensors["output"] = [text, *tensors["output"], {"name": "output_tokens", **count}]
    return _ours(version, "transformers_model.py", told) | tensors


def _task(folder: Path, order: Order) -> str:
    """By the setting, or by the class in config.json."""
    if given := order.settings.get("task"):
        if given not in TASKS:
            hint = did_you_mean(str(given), TASKS)
            why = f"{order.model}: task {given!r}, expected one of {TASKS}.{hint}"
            raise StartError(why, final=True)
        return str(given)
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        why = f"{order.model}: {folder / 'config.json'} names no architecture; set `task`"
        raise StartError(why, final=True) from error
    if "ForSequenceClassification" in named:
        return "classify"
    return "generate" if named.endswith(("ForCausalLM", "LMHeadModel")) else "embed"


def _link(folder: Path, place: Path) -> None:
    """Links to all files, in folders of our own: Python puts its `__pycache__` beside a file.

    Triton's process for Python models ignores the variables that would keep it from that.
    """
    for path in folder.iterdir():
        if path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():
            (place / path.name).mkdir(exist_ok=True)
            _link(path, place / path.name)
        else:
            (place / path.name).symlink_to(path)


def _ours(version: Path, model: str, told: Mapping[str, Any]) -> Config:
    """One of our models for the Python backend, and what it is told."""
    shutil.copyfile(OURS / model, version / "model.py")
    shutil.copyfile(OURS / "batches.py", version / "batches.py")
    parameters = {name: {"string_value": str(value)} for name, value in told.items()}
    return {"backend": "python", "parameters": parameters}


def _described(layout: Layout, file: Path, order: Order) -> Config:
    """Inputs and outputs, by the library that will run the file; the settings may say them."""
    if order.settings.get("input") and order.settings.get("output"):
        return {}
    command = [str(layout.python), "-I", str(OURS / "describe.py"), str(file)]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=DESCRIBE_S, check=True,
            env=layout.variables({"CUDA_VISIBLE_DEVICES": ""}),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StartError(f"{order.model}: {file} was not read in {DESCRIBE_S:g} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StartError(f"{order.model}: {file.name}: {last[:300]}", log=error.stderr) from error
    found: Config = json.loads(told.stdout)
    return found


def _one(folder: Path, pattern: str, usual: str, order: Order) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) > 1 and folder / usual not in found:
        names = ", ".join(path.name for path in found[:4])
        why = f"{order.model}: {folder} holds {names}; call the one to serve {usual}"
        raise StartError(why, final=True)
    return folder / usual if len(found) > 1 else found[0]


def _check_settings(order: Order) -> None:
    if found := settings.problem("triton", order.settings):
        raise StartError(f"{order.model}: {found[1]}", final=True)
    if order.settings.get("env"):
        why = "models share the environment of their server; give `env` to Triton as a whole"
        raise StartError(f"{order.model}: {why}", final=True)


def _complete(config: Config, entry: str, order: Order, gpu: int | None) -> None:
    """What holds for every kind: the name, where it runs, how many, in which batches."""
    asked = order.settings
    config["name"] = entry
    group: Config = {"count": int(asked.get("instances", 1)), "kind": "KIND_CPU"}
    if gpu is not None:
        group |= {"kind": "KIND_GPU", "gpus": [gpu]}
    config["instance_group"] = [group]
    for name in ("input", "output", "max_batch_size"):
        if name in asked:
            config[name] = asked[name]
    if size := int(config.get("max_batch_size", 0)):
        if size > 0 and "max_batch_size" in asked and "backend" in config:
            _batch(config, order)
        delay = asked.get("max_queue_delay_microseconds", 0)
        config.setdefault("dynamic_batching", {"max_queue_delay_microseconds": delay})
    limits = {}
    if order.bytes_per_gpu and order.memory_bytes:
        limits["memory_share"] = f"{min(1.0, order.bytes_per_gpu / order.memory_bytes):.4f}"
        limits["bytes"] = str(order.bytes_per_gpu)
    told = {**limits, **asked.get("parameters", {})}
    more = {name: {"string_value": str(value)} for name, value in told.items()}
    config["parameters"] = {**config.get("parameters", {}), **more}


def _batch(config: Config, order: Order) -> None:
    """Triton leaves the size of the batch out of the shapes in a configuration."""
    for tensor in (*config.get("input", []), *config.get("output", [])):
        if "input" in order.settings and "output" in order.settings:
            return  # said as Triton wants them
        if not tensor["dims"] or tensor["dims"][0] != -1:
            why = f"{tensor['name']} has the shape {tensor['dims']}: its first size is fixed"
            raise StartError(f"{order.model}: no batches: {why}", final=True)
        tensor["dims"] = tensor["dims"][1:] or [1]


def _as_text(config: Config, order: Order) -> str:
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        text: str = text_format.MessageToString(json_format.ParseDict(config, ModelConfig()))
    except json_format.ParseError as error:
        why = f"{order.model}: its configuration for Triton: {error}"
        raise StartError(why, final=True) from error
    return text
