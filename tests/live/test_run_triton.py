"""`modelium run` with a real Triton: models of three kinds take turns in the memory of one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from openai import OpenAI
from tritonclient.grpc import InferenceServerClient, InferInput

from modelium.managers.triton import layout as triton_layout
from tests.live import tiny
from tests.live.running import WITHIN_S, Running, left_behind, running, still_there, sweep
from tests.managers.triton_house import ONE_THREAD, config, double, needs_triton, onnx
from tests.managers.vllm_house import free_port

pytestmark = [pytest.mark.engines, needs_triton()]


def post(server: Running, path: str, body: dict[str, Any]) -> Any:
    answer = httpx2.post(f"{server.url}{path}", json=body, timeout=WITHIN_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_models_of_three_kinds_take_turns(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "llama")
    onnx(tmp_path / "sum" / "model.onnx")
    double(tmp_path / "double" / "1")
    config(tmp_path / "double", tmp_path / "began")
    models = {
        name: {"path": name, "runtime": "triton", "weights": "20GiB"}
        | ({} if name == "llama" else {"infer": {"latency": [0.01]}})
        for name in ("llama", "sum", "double")
    }
    asked = {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": "50GiB", "count": 1}]},
        "model_repository": str(tmp_path),
        "models": models,
        "triton": {"env": ONE_THREAD, "environment": str(triton_layout.find().python.parents[1])},
        "policy": "lru",
        "gateway": {"grpc_port": (grpc_port := free_port())},
    }
    row = {"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    try:
        with running(tmp_path / "run", asked) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            told = client.completions.create(
                model="llama", prompt="Once", max_tokens=5, temperature=0
            )
            assert told.usage is not None
            assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (4, 5)
            assert post(server, "/predict/double", {"inputs": [3, 4]})["outputs"][0]["data"] == [
                6,
                8,
            ]
            assert post(server, "/v2/models/sum/infer", {"inputs": [row]})["model_name"] == "sum"
            same = by_grpc(f"127.0.0.1:{grpc_port}", row)
            assert same.get_response().model_name == "sum"
            told_in_json = post(server, "/v2/models/sum/infer", {"inputs": [row]})["outputs"][0]
            made = same.as_numpy(told_in_json["name"])
            assert made.reshape(-1).tolist() == pytest.approx(told_in_json["data"])
            about = httpx2.get(f"{server.url}/v2/models/sum").json()  # as Triton tells it
            assert about["name"] == "sum"
            assert [tensor["name"] for tensor in about["inputs"]] == ["X"]
            assert about["outputs"]
            again = client.completions.create(
                model="llama", prompt="Once", max_tokens=5, temperature=0, stream=True
            )
            assert "".join(piece.choices[0].text for piece in again) == told.choices[0].text
            client.close()
            triton = [pid for pid in left_behind(tmp_path) if "tritonserver" in _command(pid)]
            assert len(triton) == 1, "one server for one GPU"
            psutil.Process(triton[0]).kill()
            assert post(server, "/predict/llama", {"prompt": "Once", "max_tokens": 5})["output"]
            assert server.end() == 0
        assert still_there(tmp_path) == []
    finally:
        sweep(tmp_path)


def by_grpc(address: str, row: dict[str, Any]) -> Any:
    """The same inference by Triton's own client."""
    tensor = InferInput(row["name"], row["shape"], row["datatype"])
    tensor.set_data_from_numpy(np.array(row["data"], np.float32).reshape(row["shape"]))
    with InferenceServerClient(address) as client:
        assert [one.name for one in client.get_model_metadata("sum").inputs] == [row["name"]]
        return client.infer("sum", [tensor])


def _command(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline()[:1])
