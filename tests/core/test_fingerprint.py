"""What a model's files are, by stat alone: what changes it, and what does not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelium.storage.fingerprint import FilesIdentity, fingerprint


def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "1").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "1" / "model.onnx").write_bytes(b"graph")
    return made


def replace_with_a_copy_of_the_same_time(made: Path) -> None:
    weights, other = made / "model.safetensors", made / "other"
    other.write_bytes(b"WEIGHTS")
    shutil.copystat(weights, other)
    other.replace(weights)


def overwrite(made: Path) -> None:
    weights = made / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (replace_with_a_copy_of_the_same_time, "model.safetensors was replaced"),
    "overwritten": (overwrite, "model.safetensors was changed"),
    "longer": (
        lambda made: (made / "1" / "model.onnx").write_bytes(b"another graph"),
        "1/model.onnx was changed",
    ),
    "new": (
        lambda made: (made / "generation_config.json").touch(),
        "generation_config.json is new",
    ),
    "gone": (lambda made: (made / "config.json").unlink(), "config.json is gone"),
    "all gone": (shutil.rmtree, "1/model.onnx is gone, config.json is gone, model.safetensors is"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_files_is_seen_and_named(tmp_path: Path, change: str) -> None:
    made = folder(tmp_path)
    before = fingerprint(made)
    do, words = CHANGES[change]
    do(made)
    assert fingerprint(made) != before
    assert fingerprint(made).difference(before).startswith(words)


def test_what_says_nothing_about_the_model_changes_nothing(tmp_path: Path) -> None:
    made = folder(tmp_path)
    before = fingerprint(made)
    for name in ("README.md", "LICENSE", ".gitattributes", "__pycache__/model.cpython-312.pyc"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("something")
    os.chmod(made / "config.json", 0o600)
    (made / "config.json").read_text()
    moved = made.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    assert fingerprint(moved).difference(before) == ""


def test_a_link_to_itself_is_no_file_and_no_folder(tmp_path: Path) -> None:
    made = folder(tmp_path)
    before = fingerprint(made)
    for name in ("loop", "loop.json", "1/loop.onnx"):
        (made / name).symlink_to(made / name)
    assert fingerprint(made) == before
    assert fingerprint(made / "loop") == FilesIdentity()


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub, and in a folder of versions."""
    first, second = folder(tmp_path / "v1"), folder(tmp_path / "v2")
    hub, current = tmp_path / "hub", tmp_path / "current"
    hub.mkdir()
    (hub / "model.safetensors").symlink_to(first / "model.safetensors")
    (hub / "broken").symlink_to(tmp_path / "nothing")
    (hub / "again").symlink_to(hub)
    before = fingerprint(hub)
    assert [one.name for one in before.files] == ["model.safetensors"]
    replace_with_a_copy_of_the_same_time(first)
    assert fingerprint(hub).difference(before) == "model.safetensors was replaced"
    current.symlink_to(first)
    assert fingerprint(current) == fingerprint(first)
    current.unlink()
    current.symlink_to(second)
    assert fingerprint(current) != fingerprint(first)


def test_one_file_is_a_model_too_and_nothing_has_no_files(tmp_path: Path) -> None:
    made = folder(tmp_path)
    [only] = fingerprint(made / "model.safetensors").files
    assert (only.name, only.size_bytes) == ("model.safetensors", 7)
    assert fingerprint(tmp_path / "nothing") == FilesIdentity()


def test_it_is_kept_as_json(tmp_path: Path) -> None:
    found = fingerprint(folder(tmp_path))
    assert FilesIdentity.from_list(json.loads(json.dumps(found.as_list()))) == found


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    made = tmp_path / "model"
    made.mkdir()
    for number in range(5):
        (made / f"{number}.safetensors").touch()
    told = fingerprint(made).difference(FilesIdentity())
    assert told == "0.safetensors is new, 1.safetensors is new, 2.safetensors is new and 2 more"
