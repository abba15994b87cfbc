"""Sizes come from headers alone, and a header that lies is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelium.analyze import analyze
from modelium.analyze import safetensors as reader
from modelium.errors import ProfileError

PARAMETERS = 2 * 256 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
"""Two tables, two layers of attention and feed-forward blocks."""
INDEX = "model.safetensors.index.json"


def test_parameters_bytes_and_types_are_summed(llama: Path) -> None:
    files = analyze(llama)
    assert files.parameters == PARAMETERS
    assert files.weights_bytes == 2 * PARAMETERS
    assert dict(files.dtypes) == {"BF16": 2 * PARAMETERS}
    assert (files.format, files.files) == ("safetensors", 1)
    assert files.shape is not None
    assert files.shape.counted_params == PARAMETERS
    assert files.unknown == ()


def test_shards_add_up_to_the_same(sharded: Path) -> None:
    files = analyze(sharded)
    assert (files.parameters, files.weights_bytes) == (PARAMETERS, 2 * PARAMETERS)
    assert files.files == 2


def test_the_weights_are_not_read(llama: Path) -> None:
    path = llama / "model.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    with path.open("r+b") as file:  # a hole of a terabyte takes no disk, and no time unless read
        header = json.loads(content[8:end])
        size = 1 << 40
        header["huge"] = {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [2 * PARAMETERS, 2 * PARAMETERS + size],
        }
        text = json.dumps(header).encode()
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * PARAMETERS + size)
    assert analyze(llama).weights_bytes == 2 * PARAMETERS + size


def test_several_types_are_told_apart(tmp_path: Path, safetensors: Callable[..., bytes]) -> None:
    tensors = {"a": ("F8_E4M3", [100, 10]), "scale": ("F32", [10])}
    (tmp_path / "model.safetensors").write_bytes(safetensors(tensors))
    files = analyze(tmp_path)
    assert dict(files.dtypes) == {"F8_E4M3": 1000, "F32": 40}
    assert files.parameters == 1010


def test_packed_weights_are_counted_by_the_shape(
    llama: Path, safetensors: Callable[..., bytes]
) -> None:
    packed = {"qweight": ("I32", [1000]), "scales": ("F16", [100])}
    (llama / "model.safetensors").write_bytes(safetensors(packed))
    files = analyze(llama)
    assert files.parameters == PARAMETERS
    assert files.weights_bytes == 4200
    assert any("packed" in note for note in files.unknown)


def test_a_type_from_the_future_is_counted_by_its_offsets(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F2_E1M0", "shape": [40], "data_offsets": [0, 10]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(10))
    assert analyze(tmp_path).dtypes == {"F2_E1M0": 10}


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(data_offsets=[0, 12]),
        tensor(data_offsets=[8, 0]),
        tensor(data_offsets=[-8, 0]),
        tensor(data_offsets=[0, 10**30]),
        tensor(data_offsets=[0, True]),
        tensor(data_offsets=[0]),
        tensor(data_offsets="0:8"),
        tensor(shape=[3]),
        tensor(shape=[-1, -2]),
        tensor(shape=[2.0]),
        tensor(shape=[1] * 33 + [2]),
        tensor(shape=2),
        tensor(dtype=7),
        tensor(dtype="F2_E1M0", shape=[10**15]),
        {"dtype": "F32"},
        [],
        None,
        8,
        "\n",
    ],
)
def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path, wrong: object) -> None:
    text = json.dumps({"w": wrong}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ProfileError, match=r"^\S*model\.safetensors describes tensor 'w'.*\?$"):
        analyze(tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 9, 500, 2000, -1])
def test_a_file_cut_short_is_refused(llama: Path, cut: int) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ProfileError, match=r"model\.safetensors"):
        analyze(llama)


def test_bytes_that_no_tensor_owns_are_refused(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ProfileError, match="its header lists"):
        analyze(llama)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (1 << 64) - 1, 1 << 63])
def test_an_absurd_header_length_is_refused(llama: Path, length: int) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(ProfileError, match=r"not a whole safetensors file|not JSON"):
        analyze(llama)


def test_a_huge_header_is_refused_unread(llama: Path) -> None:
    with (llama / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 1 << 38))
        file.truncate(1 << 39)
    with pytest.raises(ProfileError, match=r"header of 274877906944 bytes"):
        analyze(llama)


@pytest.mark.parametrize("text", [b"[]", b"7 ", b"{'a'}", b"\xff\xfe{}", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(llama: Path, text: bytes) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ProfileError, match="the header of"):
        analyze(llama)


def test_a_git_lfs_pointer_is_named(llama: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (llama / "model.safetensors").write_bytes(pointer)
    with pytest.raises(ProfileError, match="git lfs pull"):
        analyze(llama)


def test_missing_shards_are_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ProfileError, match=r"2 files, of which 1 are missing: 'model-00002"):
        analyze(sharded)


def test_an_index_alone_gives_the_size_and_says_so(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["metadata"]["total_size"] = 12345678
    (sharded / INDEX).write_text(json.dumps(index))
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    files = analyze(sharded)
    assert (files.format, files.files, files.weights_bytes) == ("safetensors", 0, 12345678)
    assert files.parameters == PARAMETERS  # by the shape
    assert files.runtime == "vllm"
    assert any("none of the 2 files is here" in note for note in files.unknown)


def test_an_index_alone_that_states_no_size_leaves_it_to_the_shape(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    del index["metadata"]
    (sharded / INDEX).write_text(json.dumps(index))
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    files = analyze(sharded)
    assert (files.format, files.weights_bytes) == ("none", 2 * PARAMETERS)


def test_weights_that_are_here_go_before_an_index_of_those_that_are_not(sharded: Path) -> None:
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    (sharded / "pytorch_model.bin").write_bytes(bytes(1000))
    files = analyze(sharded)
    assert (files.format, files.weights_bytes) == ("pytorch", 1000)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b", "..", "", "a\\b", "x\0y"]
)
def test_a_shard_outside_the_folder_is_refused(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    (sharded.parent / "model.safetensors").write_bytes(b"outside")
    with pytest.raises(ProfileError, match="expected one in its own folder"):
        analyze(sharded)


def test_a_name_that_no_file_can_have_is_missing(sharded: Path) -> None:
    for name in ("x" * 5000, "\ud800"):
        index = json.loads((sharded / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = name
        (sharded / INDEX).write_text(json.dumps(index))
        with pytest.raises(ProfileError, match="missing") as caught:
            analyze(sharded)
        str(caught.value).encode()


def test_a_tensor_that_its_shard_lacks_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ProfileError, match=r"places tensor 'ghost' .*does not hold it"):
        analyze(sharded)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": None}},
        [],
    ],
)
def test_an_index_without_a_map_is_refused(sharded: Path, index: object) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ProfileError, match=INDEX):
        analyze(sharded)


@pytest.mark.parametrize("size", [-1, "big", True, float("nan"), 1e300])
def test_a_negative_or_absurd_total_is_refused(sharded: Path, size: object) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["metadata"]["total_size"] = size
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ProfileError, match="total_size"):
        analyze(sharded)


def test_reading_stops_at_the_header(llama: Path) -> None:
    header = reader.read_header(llama / "model.safetensors")
    assert set(header) == set(reader.read_header(llama / "model.safetensors"))
    assert "__metadata__" not in header
