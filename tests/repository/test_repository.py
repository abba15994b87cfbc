"""The repository: what is whole and safe goes in as a whole; everything else stays where it is."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.repository import ModelRepository, RepositoryError, StoredModel, watch, watching
from modelium.repository.checking import check_name, listing
from modelium.storage import durable
from modelium.storage.unfinished import unfinished

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
    "torch_dtype": "float32",
}  # fmt: skip


def safetensors(path: Path, floats: int = 100) -> None:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * floats))


def put(folder: Path) -> Path:
    """A model as somebody would copy it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors(folder / "model.safetensors")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


def test_a_model_goes_in_is_known_and_goes_out(repository: ModelRepository) -> None:
    folder = put(repository.incoming / "qwen")
    model = repository.add_model_from_incoming(folder, "qwen")
    assert (model.runtime, model.architecture) == ("vllm", "Qwen2ForCausalLM")
    assert model.weights_bytes == 400
    assert not folder.exists()
    assert (repository.folder("qwen") / "model.safetensors").is_file()
    assert ModelRepository(repository.path).get_model("qwen") == model
    stats = repository.get_stats()
    assert (stats["models"], stats["weights_bytes"], stats["by_runtime"]) == (1, 400, {"vllm": 1})
    repository.remove_model("qwen")
    assert repository.list_models() == []
    assert list(repository.models.iterdir()) == []
    with pytest.raises(RepositoryError, match="no model called 'qwen'"):
        repository.get_model("qwen")


def test_names_may_have_an_organization(repository: ModelRepository) -> None:
    repository.add_model_from_incoming(put(repository.incoming / "x"), "org/qwen", "ray")
    assert repository.get_model("org/qwen").runtime == "ray"
    with pytest.raises(RepositoryError, match="Did you mean 'org/qwen'"):
        repository.get_model("org/gwen")


def test_the_same_name_twice_is_refused_and_nothing_moves(repository: ModelRepository) -> None:
    repository.add_model_from_incoming(put(repository.incoming / "a"), "a")
    again = put(repository.incoming / "a")
    with pytest.raises(RepositoryError, match="already"):
        repository.add_model_from_incoming(again, "a")
    assert (again / "config.json").is_file()


@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_repository(name: str) -> None:
    try:
        fine = check_name(name)
    except RepositoryError:
        return
    place = Path("/repository/models") / fine
    assert Path(os.path.normpath(place)) == place
    assert place.is_relative_to("/repository/models")
    assert len(place.parts) in (4, 5)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/a", "a/b/c", "a b", "a\n", ".a", "a/.b", "x" * 201]
)
def test_tricks_are_no_names(name: str) -> None:
    with pytest.raises(RepositoryError, match="no name for a model"):
        check_name(name)


def test_a_link_that_leads_out_is_refused(repository: ModelRepository, tmp_path: Path) -> None:
    folder = put(repository.incoming / "a")
    (tmp_path / "secret").write_text("x")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(RepositoryError, match=r"notes\.txt is a link that leads out of it"):
        repository.add_model_from_incoming(folder)
    assert folder.exists()


def test_a_link_to_itself_is_no_file_of_a_model(repository: ModelRepository) -> None:
    folder = repository.incoming / "a"
    folder.mkdir()
    (folder / "model.py").write_text("class Model: ...")
    (folder / "loop").symlink_to(folder / "loop")
    repository.add_model_from_incoming(folder)
    assert [one.name for one in repository.list_models()] == ["a"]


def test_pickles_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    def pickled(repository: ModelRepository) -> Path:
        folder = put(repository.incoming / "a")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": [1.0] * 100}))
        return folder

    strict = ModelRepository(tmp_path / "strict")
    with pytest.raises(RepositoryError, match=r"pytorch_model\.bin is a pickle"):
        strict.add_model_from_incoming(pickled(strict))
    trusting = ModelRepository(tmp_path / "trusting", allow_pickle=True)
    assert trusting.add_model_from_incoming(pickled(trusting)).format == "pytorch"


def test_a_python_model_is_told_by_its_class(repository: ModelRepository) -> None:
    for name, text, runtime in (
        ("t", "class TritonPythonModel: ...", "triton"),
        ("r", "class Model: ...", "ray"),
    ):
        folder = repository.incoming / name
        folder.mkdir()
        (folder / "model.py").write_text(text)
        assert repository.add_model_from_incoming(folder).runtime == runtime


@given(st.integers(0, 8 + 70 + 400))
def test_every_beginning_of_a_safetensors_file_is_unfinished(length: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.safetensors"
        safetensors(file)
        whole = file.read_bytes()
        file.write_bytes(whole[:length])
        assert bool(unfinished(Path(name))) == (length < len(whole))


def test_a_folder_that_comes_and_goes_can_be_looked_at(tmp_path: Path) -> None:
    folder, over = tmp_path / "model", threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for part in "abcdefgh":
                (folder / part / "deep").mkdir(parents=True)
            shutil.rmtree(folder)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(3000):
            assert listing(folder) == ()
            assert unfinished(folder) == ""
    finally:
        over.set()
        thread.join()


def test_what_is_put_into_incoming_is_taken_in_once_it_is_whole(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "repository")
    told: list[tuple[str, StoredModel | None, str]] = []
    heard = threading.Condition()

    def hear(name: str, model: StoredModel | None, why: str) -> None:
        with heard:
            told.append((name, model, why))
            heard.notify_all()

    def wait_for(count: int) -> None:
        with heard:
            assert heard.wait_for(lambda: len(told) >= count, 300.0), told

    def put_in(name: str, files: dict[str, bytes]) -> Path:
        """All of them at once: one after another, a slow machine would let some lie for a while."""
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return folder.rename(repository.incoming / name)

    files = {file.name: file.read_bytes() for file in put(tmp_path / "source").iterdir()}
    weights = files["model.safetensors"]
    with watch(repository, hear, still_s=0.3):
        half = put_in("org--half", {**files, "model.safetensors": weights[:100]})
        put_in("good", files)
        wait_for(1)
        assert told[0][0] == "good"
        assert told[0][1] is not None
        (half / "model.safetensors").write_bytes(weights)
        wait_for(2)
        assert told[1][0] == "org/half"
        bad = put_in("bad", {"readme.txt": b"no model"})
        wait_for(3)
        assert told[2][1] is None
        why = repository.incoming / "bad.why.txt"
        assert why.read_text().strip() == told[2][2]
        shutil.rmtree(bad)  # it is put right
        put_in("bad", files)
        wait_for(4)
        assert told[3][1] is not None
        assert not why.exists()
        put_in("good", files)
        wait_for(5)
        assert "delete it first" in told[4][2]
        repository.remove_model("good")
        (repository.incoming / ".stir").touch()  # else it is seen a few seconds later
        wait_for(6)
        assert told[5][:1] + told[5][2:] == ("good", "")
        (repository.incoming / "model.gguf").touch()
        wait_for(7)
        assert "is not a folder of model files" in told[6][2]
        assert (repository.incoming / "model.gguf.why.txt").is_file()
    assert [model.name for model in repository.list_models()] == ["bad", "good", "org/half"]


def test_what_the_file_system_will_not_have_is_told_once_and_tried_again(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MISSED_S", 0.1)
    told: list[tuple[str, str]] = []
    changed = threading.Condition()

    def note(name: str, model: StoredModel | None, why: str) -> None:
        with changed:
            told.append((name, why))
            changed.notify_all()

    def wait_for(*expected: str) -> None:
        with changed:
            assert changed.wait_for(lambda: [name for name, _ in told] == [*expected], 300.0), told

    long = "x" * 250  # there is no room for ".why.txt" behind it
    (repository.models / "org").write_text("a file where a folder has to be")
    with watch(repository, note, still_s=0.05):
        put(repository.incoming / long)
        wait_for(long)
        assert "is no name for a model" in told[0][1]
        put(repository.incoming / "org--a")
        wait_for(long, "org/a")
        assert "File exists" in told[1][1]
        put(repository.incoming / "b")
        wait_for(long, "org/a", "b")
        (repository.models / "org").unlink()
        wait_for(long, "org/a", "b", "org/a")
    assert [model.name for model in repository.list_models()] == ["b", "org/a"]


def test_an_index_that_cannot_be_written_leaves_all_as_it_was(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add_model_from_incoming(put(repository.incoming / "a"))
    folder = put(repository.incoming / "b")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            repository.add_model_from_incoming(folder)
        with pytest.raises(RepositoryError, match="No space left on device"):
            repository.begin_replacing(folder, "a")
    assert (folder / "model.safetensors").is_file()
    assert [model.name for model in ModelRepository(repository.path).list_models()] == ["a"]
    assert not list(repository.path.glob(".index-*"))
    assert repository.add_model_from_incoming(folder).name == "b"


def test_an_index_that_is_none_is_told(repository: ModelRepository) -> None:
    (repository.path / "index.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"index\.json: not an index"):
        repository.list_models()


@pytest.mark.parametrize("config", [{}, CONFIG])
def test_a_model_whose_weights_are_elsewhere_is_refused(
    repository: ModelRepository, config: dict[str, Any]
) -> None:
    """Not even if an index, or the shape, says how large they are."""
    folder = repository.incoming / "later"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 400}, "weight_map": {"w": "model-1-of-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RepositoryError, match="it has no weights"):
        repository.add_model_from_incoming(folder, "later")
    assert folder.is_dir()
