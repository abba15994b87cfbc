"""What is written for Triton, without one: names, kinds, links, settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelium.managers.engine import Order, StartError
from modelium.managers.triton.entry import entry_name, erase, write
from modelium.managers.triton.layout import Layout
from tests.live import tiny
from tests.managers.triton_house import TENSORS, double, onnx

NAMES = st.text(st.sampled_from("aB0._-/#~ é:"), max_size=100)


@given(NAMES, NAMES)
def test_names_are_safe_in_paths_and_addresses_and_tell_instances_apart(a: str, b: str) -> None:
    for name in (a, b):
        assert re.fullmatch(r"[\w.~-]{1,100}", entry_name(name), re.A)
        assert not entry_name(name).startswith(".")
        assert ".." not in entry_name(name).split("/")
    assert (entry_name(a) == entry_name(b)) == (a == b)


def test_names_stay_readable() -> None:
    assert entry_name("resnet50") == "resnet50"
    assert entry_name("llama-3.1-8b#12") == "llama-3.1-8b~12"
    assert entry_name("org/name#1").startswith("org_name")


def layout(tmp_path: Path, *backends: str) -> Layout:
    """NVIDIA's own server with some backends."""
    for name in backends:
        (tmp_path / "backends" / name).mkdir(parents=True, exist_ok=True)
    return Layout(tmp_path / "server", tmp_path / "python3", tmp_path / "backends")


def written(repository: Path, entry: str) -> ModelConfig:
    text = (repository / entry / "config.pbtxt").read_text()
    return text_format.Parse(text, ModelConfig())


def test_tritons_own_backend_serves_onnx_where_there_is_one(tmp_path: Path) -> None:
    path = onnx(tmp_path / "m" / "weird.onnx")
    (path / "weights.data").write_bytes(b"1")
    order = Order("a", "a", path, bytes_per_gpu=20, memory_bytes=80)
    assert write(tmp_path / "r", "a", order, layout(tmp_path, "onnxruntime"), 0) == "onnx"
    config = written(tmp_path / "r", "a")
    assert (config.backend, config.name) == ("onnxruntime", "a")
    assert list(config.instance_group[0].gpus) == [0]
    assert config.parameters["memory_share"].string_value == "0.2500"
    links = {one.name: one.resolve() for one in (tmp_path / "r" / "a" / "1").iterdir()}
    assert links == {
        "model.onnx": path / "weird.onnx",
        "weights.data": path / "weights.data",
    }


def test_a_hugging_face_folder_is_served_by_what_it_is(tmp_path: Path) -> None:
    path, here = tiny.llama(tmp_path / "m", weights=False), layout(tmp_path)
    config = path / "config.json"
    for architecture, kind in (
        ("LlamaForCausalLM", "transformers/generate"),
        ("BertModel", "transformers/embed"),
        ("BertForSequenceClassification", "transformers/classify"),
    ):
        config.write_text(f'{{"architectures": ["{architecture}"]}}')
        assert write(tmp_path / "r", "a", Order("a", "a", path), here, None) == kind
    assert [one.name for one in written(tmp_path / "r", "a").output] == ["scores", "prompt_tokens"]
    config.write_text("{}")
    with pytest.raises(StartError, match="names no architecture; set `task`"):
        write(tmp_path / "r", "a", Order("a", "a", path), here, None)
    assert not (tmp_path / "r" / "a").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"instance": 2}, "Triton has no setting 'instance'. Did you mean 'instances'"),
        ({"env": {"A": "1"}}, "models share the environment of their server"),
        ({**TENSORS, "parameters": {}, "input": [{"nom": "X"}]}, "its configuration for Triton"),
        ({}, "nothing says which tensors its model.py takes and gives"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, object], why: str) -> None:
    order = Order("a", "a", double(tmp_path / "m"), settings=settings)
    with pytest.raises(StartError, match=re.escape(why)):
        write(tmp_path / "r", "a", order, layout(tmp_path), None)
    assert not (tmp_path / "r" / "a").exists()


def test_folders_without_a_model_and_with_too_many_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StartError, match="holds nothing that Triton serves"):
        write(tmp_path / "r", "a", Order("a", "a", empty), None, None)
    (empty / "a.onnx").touch()
    (empty / "b.onnx").touch()
    with pytest.raises(StartError, match=r"a.onnx, b.onnx; call the one to serve model.onnx"):
        write(tmp_path / "r", "a", Order("a", "a", empty), None, None)
    with pytest.raises(StartError, match="its files are not at None"):
        write(tmp_path / "r", "a", Order("a", "a"), None, None)


def test_only_what_was_written_is_removed(tmp_path: Path) -> None:
    theirs = double(tmp_path / "r" / "a")
    order = Order("a", "a", double(tmp_path / "m"), settings=TENSORS)
    with pytest.raises(StartError, match="is somebody else's; move it away"):
        write(tmp_path / "r", "a", order, None, None)
    assert write(tmp_path / "r", "a", Order("a", "a", theirs), None, None) == "triton"
    erase(tmp_path / "r", "a")
    assert (theirs / "model.py").exists()
    write(tmp_path / "r", "b", order, None, None)
    erase(tmp_path / "r", "b")
    assert not (tmp_path / "r" / "b").exists()
    assert (tmp_path / "m" / "model.py").exists(), "links are removed, not what they lead to"


def test_batches_need_a_size_that_is_free(tmp_path: Path) -> None:
    tensors = {kind: [{**TENSORS[kind][0], "dims": [-1, 3]}] for kind in TENSORS}
    order = Order("a", "a", double(tmp_path / "m"), settings={**tensors, "max_batch_size": 8})
    write(tmp_path / "r", "a", order, layout(tmp_path), None)
    config = written(tmp_path / "r", "a")
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 3], "as the settings say it"


def test_folders_are_of_our_own_and_files_are_links(tmp_path: Path) -> None:
    path = double(tmp_path / "m")
    (path / "parts" / "__pycache__").mkdir(parents=True)
    (path / "parts" / "config.pbtxt").write_text("no configuration of Triton's")
    (path / "shared").symlink_to(tmp_path / "elsewhere")
    order = Order("a", "a", path, settings=TENSORS)
    assert write(tmp_path / "r", "a", order, layout(tmp_path), None) == "python"
    place = tmp_path / "r" / "a" / "1"
    assert not (place / "parts").is_symlink(), "Python would write through it"
    assert [one.name for one in (place / "parts").iterdir()] == ["config.pbtxt"]
    for name in ("model.py", "parts/config.pbtxt", "shared"):
        assert (place / name).readlink() == path / name
