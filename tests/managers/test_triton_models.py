"""Files of every kind, served by a real Triton: ONNX, TorchScript, Hugging Face, Triton's own."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelium.managers.engine import Engine, Order, StartError
from modelium.managers.triton.manager import TritonManager
from tests.live import tiny
from tests.managers.triton_house import (
    DEADLINE_S,
    FAIL,
    REFUSE,
    config,
    double,
    doubled,
    infer,
    manager,
    needs_triton,
    onnx,
    tensor,
    torchscript,
)
from tests.managers.vllm_house import end_all, processes_of

pytestmark = [pytest.mark.engines, needs_triton()]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonManager]:
    folder = tmp_path_factory.mktemp("triton-models")
    made = manager(folder / "logs")
    yield made
    assert end_all(made._processes) == []
    assert processes_of(folder) == []


def served(triton: TritonManager, name: str, path: Path, **settings: Any) -> Engine:
    return triton.start(Order(name, name, path, settings=settings, deadline_s=DEADLINE_S))


@pytest.fixture(scope="module")
def llama(
    triton: TritonManager, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Path]]:
    path = tiny.llama(tmp_path_factory.mktemp("models") / "llama", context=256)
    engine = served(triton, "llama", path)
    yield engine, path
    triton.stop(engine)


def text(engine: Engine, prompt: str, tokens: int, warmth: float = 0.0) -> dict[str, Any]:
    return infer(
        engine,
        tensor("text_input", "BYTES", prompt),
        tensor("max_tokens", "INT32", tokens),
        tensor("temperature", "FP32", warmth),
    )


def test_onnx_rows_are_computed_as_the_file_says(triton: TritonManager, tmp_path: Path) -> None:
    engine = served(triton, "sum", onnx(tmp_path / "sum" / "model.onnx"))
    assert engine.extra["inputs"] == ["X"]
    given = tensor("X", "FP32", 1, 2, 3, 4, 5, 6, shape=[2, 3])
    assert infer(engine, given) == {"Y": [2, 4, 6, 8, 10, 12]}
    told = infer(engine, tensor("X", "FP32", 1, 2, shape=[1, 2]))
    assert (told["status"], "unexpected shape" in told["error"]) == (400, True), told
    triton.stop(engine)


def test_what_the_library_refuses_is_the_clients_fault(
    triton: TritonManager, tmp_path: Path
) -> None:
    wide = {"data_type": "TYPE_FP32", "dims": [-1, -1]}
    more = {"input": [{"name": "X", **wide}], "output": [{"name": "Y", **wide}]}
    engine = served(triton, "wide", onnx(tmp_path / "wide" / "model.onnx"), **more)
    told = infer(engine, tensor("X", "FP32", 1, 2, shape=[1, 2]))
    assert (told["status"], "Got: 2 Expected: 3" in told["error"]) == (400, True), told
    triton.stop(engine)


def test_batches_are_put_together_and_taken_apart(triton: TritonManager, tmp_path: Path) -> None:
    path = onnx(tmp_path / "sum" / "model.onnx")
    more = {"max_batch_size": 8, "max_queue_delay_microseconds": 3_000_000}
    engine = served(triton, "sums", path, **more)
    with ThreadPoolExecutor(8) as pool:
        rows = [tensor("X", "FP32", n, n + 1, n + 2, shape=[1, 3]) for n in range(8)]
        told = list(pool.map(lambda row: infer(engine, row)["Y"], rows))
    assert told == [[2 * n, 2 * n + 2, 2 * n + 4] for n in range(8)]
    inferences, executions = _counted(engine)
    assert inferences == 9, "with the first small one"
    assert executions < inferences
    triton.stop(engine)


def test_torchscript_takes_and_gives_several_tensors(triton: TritonManager, tmp_path: Path) -> None:
    engine = served(triton, "both", torchscript(tmp_path / "both" / "model.pt"))
    assert engine.extra["inputs"] == ["a", "b"]
    a, b = (
        tensor(name, "FP32", *row, shape=[1, 2]) for name, row in (("a", (5, 7)), ("b", (2, 3)))
    )
    assert infer(engine, a, b) == {"OUTPUT__0": [7, 10], "OUTPUT__1": [3, 4]}
    triton.stop(engine)


def test_a_text_model_goes_on_with_a_prompt_and_counts_its_tokens(
    llama: tuple[Engine, Path],
) -> None:
    engine, _ = llama
    once, again = text(engine, "Once", 12), text(engine, "Once", 12)
    assert once == again
    assert once["prompt_tokens"] == [4], "tokens are bytes here"
    assert 1 <= once["output_tokens"][0] <= 12
    assert text(engine, "Twice", 12)["text_output"] != once["text_output"]
    warm = {text(engine, "Once", 12, 1.5)["text_output"][0] for _ in range(4)}
    assert len(warm) > 1, "at a temperature it varies"


def test_a_text_model_refuses_what_it_cannot_do(llama: tuple[Engine, Path]) -> None:
    engine, _ = llama
    for told, why in (
        (text(engine, "x" * 250, 12), "250 tokens and 12 more exceed the context, 256"),
        (text(engine, "Once", 0), "max_tokens is 0, expected at least 1"),
        (text(engine, "", 1), "text_input is empty"),
    ):
        assert (told["status"], told["error"].partition(": ")[2] or told["error"]) == (400, why)
    assert text(engine, "Once", 1)["output_tokens"] == [1]


def test_an_encoder_gives_a_vector_for_each_text(
    triton: TritonManager, llama: tuple[Engine, Path]
) -> None:
    engine = served(triton, "embed", llama[1], task="embed")
    together = infer(engine, tensor("text_input", "BYTES", "a", "bcd"))
    alone = infer(engine, tensor("text_input", "BYTES", "a"))
    assert together["prompt_tokens"] == [1, 3]
    assert together["embedding"][:64] == pytest.approx(alone["embedding"], abs=1e-5)
    triton.stop(engine)


def test_a_model_of_a_triton_repository_keeps_its_own_configuration(
    triton: TritonManager, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    double(folder / "1")
    config(folder, tmp_path / "began")
    engine = triton.load_model("own", folder)
    assert doubled(engine, 4) == [8]
    assert triton.is_model_loaded("own")
    assert triton.get_model_endpoint("own") == engine.url
    triton.unload_model("own")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]
    (folder / "1" / "model.py").rename(folder / "model.py")
    (folder / "1").rmdir()
    assert doubled(triton.load_model("own", folder), 4) == [8], "a version folder is not needed"
    triton.unload_model("own")
    (folder / "config.pbtxt").write_text("input { name: 7 }")
    with pytest.raises(StartError, match=r"own: .*config.pbtxt: 1:"):
        triton.load_model("own", folder)


def test_a_refusal_is_the_clients_and_a_failure_the_models(
    triton: TritonManager, tmp_path: Path
) -> None:
    config(double(tmp_path / "own"), tmp_path / "began")
    engine = triton.load_model("refuses", tmp_path / "own")
    refused = infer(engine, tensor("X", "FP32", REFUSE))
    assert (refused["status"], "X must be positive" in refused["error"]) == (400, True), refused
    failed = infer(engine, tensor("X", "FP32", FAIL))
    assert (failed["status"], "no such table" in failed["error"]) == (500, True), failed
    assert doubled(engine, 4) == [8]
    triton.unload_model("refuses")


def test_nothing_is_written_into_a_users_folder(triton: TritonManager, tmp_path: Path) -> None:
    folder = double(tmp_path / "own")
    config(folder, tmp_path / "began")
    (folder / "parts").mkdir()
    (folder / "parts" / "twice.py").write_text("import sys\nBY = 2\n")
    code = (folder / "model.py").read_text()
    (folder / "model.py").write_text(
        "from parts import twice\n" + code.replace("2 * x", "twice.BY * x")
    )
    before = sorted(folder.rglob("*"))
    assert doubled(triton.load_model("clean", folder), 4) == [8]
    triton.unload_model("clean")
    assert sorted(folder.rglob("*")) == before


def test_a_damaged_file_is_refused_with_its_cause(triton: TritonManager, tmp_path: Path) -> None:
    path = onnx(tmp_path / "sum" / "model.onnx")
    (path / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(StartError, match=r"sum: model.onnx: .*failed"):
        served(triton, "sum", path)
    hf = tiny.llama(tmp_path / "llama")
    (hf / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(StartError, match=r"cut: .*[Ss]afetensor"):
        served(triton, "cut", hf)


def _counted(engine: Engine) -> tuple[int, int]:
    host, _, port = engine.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE_S)
    connection.request("GET", f"/v2/models/{engine.name}/stats")
    told = json.loads(connection.getresponse().read())["model_stats"][0]
    connection.close()
    return told["inference_count"], told["execution_count"]
