"""Sizes of ONNX, TorchScript and pickled models and of Triton folders, from listings alone."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from modelium.analyze.reading import Weights, check_beside, check_weights, start_of
from modelium.errors import ProfileError
from modelium.storage.unfinished import files_in

_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")
"""The first kind that is there counts: others are copies, or not weights."""
_MOST_SCANNED_BYTES = 1 << 26
_EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)
"""In an ONNX file, a tensor's entry "location" (protobuf key and value); then comes the name."""
_TRITON_BACKEND = re.compile(r'^\s*(?:backend|platform)\s*:\s*"([\w.-]+)"', re.MULTILINE)


def read_onnx(folder: Path) -> Weights | None:
    """The ONNX files of a folder, with the external data files that they name."""
    paths = sorted(folder.glob("*.onnx"))
    if not paths:
        return None
    size = sum(check_weights(path) for path in paths)
    data = {beside for path in paths for beside in _external_data(path)}
    notes = ["data types: an ONNX graph is not parsed"]
    if len(paths) > 1:
        notes.append(f"{len(paths)} ONNX files are counted together")
    size += sum(check_weights(path) for path in data)
    return Weights("onnx", len(paths) + len(data), size, notes=tuple(notes))


def read_torchscript(folder: Path) -> Weights | None:
    """The TorchScript archives of a folder; None if its .pt files are not TorchScript."""
    paths = [path for path in sorted(folder.glob("*.pt")) if _is_torchscript(path)]
    if not paths:
        return None
    note = "data types: TorchScript archives are listed, not opened"
    return Weights("torchscript", len(paths), sum(map(check_weights, paths)), notes=(note,))


def read_pickles(folder: Path) -> Weights | None:
    """The sizes of pickled weights, which are never opened: a pickle can run any code."""
    globs = (sorted(folder.glob(pattern)) for pattern in _PICKLES)
    paths = next((found for found in globs if found), [])
    if not paths:
        return None
    note = (
        f"data types: {paths[0].name} is a pickle, which can run any code when it is"
        " opened, so it was not; convert it to safetensors"
    )
    return Weights("pytorch", len(paths), sum(map(check_weights, paths)), notes=(note,))


def read_triton(folder: Path) -> Weights | None:
    """A model of a Triton repository: `config.pbtxt` and folders called 1, 2, …"""
    config = folder / "config.pbtxt"
    if not config.exists():
        return None
    versions = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    if not versions:
        raise ProfileError(f"{folder} has config.pbtxt but no version folder such as {folder}/1")
    newest = max(versions, key=lambda path: int(path.name))
    text = start_of(config, _MOST_SCANNED_BYTES).decode(errors="replace")
    backend = _TRITON_BACKEND.search(text)
    inside = read_onnx(newest) or read_torchscript(newest) or _whole(newest)
    name = backend.group(1) if backend else inside.format
    return Weights(name, inside.files, inside.size_bytes, notes=inside.notes)


def _whole(folder: Path) -> Weights:
    sizes = [path.stat().st_size for path in files_in(folder) if path.is_file()]
    note = "data types: only files' sizes were looked at"
    return Weights("triton", len(sizes), sum(sizes), notes=(note,))


def _is_torchscript(path: Path) -> bool:
    """It is a zip archive with code in it; `torch.save` writes such an archive without code."""
    check_weights(path)
    if start_of(path, 4) != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ProfileError(f"{path} is not a whole archive: {error}") from None
    return any(re.match(r"[^/]+/code/", name) for name in names)


def _external_data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights, as the file itself names them."""
    content = start_of(path, _MOST_SCANNED_BYTES)  # a larger file holds its weights itself
    names = set()
    for match in _EXTERNAL.finditer(content):
        begin, length = match.end(), match.group(1)[0]
        names.add(content[begin : begin + length].decode(errors="replace"))
    return check_beside(names, path)
