"""Real Triton servers for tests: small models, and how they are spoken to and counted."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest

from modelium.errors import ConfigError
from modelium.managers.engine import Engine, Order
from modelium.managers.triton import layout as triton_layout
from modelium.managers.triton.manager import TritonManager
from tests.managers.vllm_house import free_port

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
DEADLINE_S = 400.0
"""Whatever a test waits for has come by then, on the slowest machine."""

MODEL = """
import json, os, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"]).get("parameters", {})
        mode = parameters.get("mode", {}).get("string_value", "")
        self.began = parameters["began"]["string_value"]
        if mode == "raise":
            raise RuntimeError("CUDA out of memory (pretended)")
        if mode == "wrong":
            raise ValueError("these are no weights")
        if mode == "hang":
            time.sleep(10_000)

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "X").as_numpy()
            if x[0] < 0:
                open(self.began, "w").close()
            if x[0] == -1:
                os._exit(1)
            if x[0] == -2:
                time.sleep(10_000)
            if x[0] == -3:
                end = time.monotonic() + 4
                while time.monotonic() < end:
                    pass
            if x[0] == -4:
                time.sleep(2)
            if x[0] == -5:
                refused = pb.TritonError("X must be positive", pb.TritonError.INVALID_ARG)
                answers.append(pb.InferenceResponse(error=refused))
                continue
            if x[0] == -6:
                raise RuntimeError("no such table")
            answers.append(pb.InferenceResponse([pb.Tensor("Y", 2 * x)]))
        return answers
"""
TENSORS = {
    "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [-1]}],
}
DIE, SLEEP, BURN, SLOW, REFUSE, FAIL = -1.0, -2.0, -3.0, -4.0, -5.0, -6.0
"""Inputs by which the model dies, sleeps for ever, uses the CPU for 4 s, takes 2 s, refuses the
input, and raises."""


def needs_triton() -> pytest.MarkDecorator:
    """Skips, saying how to get it, where Triton is not installed."""
    try:
        triton_layout.find()
    except ConfigError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="Triton is here")


def manager(folder: Path, **more: Any) -> TritonManager:
    """A manager whose servers belong to nobody else."""
    return TritonManager(folder=folder, env=ONE_THREAD, base_port=free_port(), **more)


def double(folder: Path) -> Path:
    """A model that doubles numbers, and does worse when it is asked to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    return folder


def config(folder: Path, began: Path) -> None:
    """Say beside it what `double` takes and gives."""
    (folder / "config.pbtxt").write_text(
        'name: "other" backend: "python"\n'
        'input { name: "X" data_type: TYPE_FP32 dims: -1 }\n'
        'output { name: "Y" data_type: TYPE_FP32 dims: -1 }\n'
        f'parameters {{ key: "began" value: {{ string_value: "{began}" }} }}\n'
    )


def order(instance: str, path: Path, mode: str = "", device: int = 0, **more: Any) -> Order:
    """An instance of `double`."""
    parameters = {"mode": mode, "began": str(began(instance, path))}
    settings = {**TENSORS, "parameters": parameters}
    more = {"deadline_s": DEADLINE_S, **more}
    return Order(instance, instance.partition("#")[0], path, (device,), settings=settings, **more)


def began(instance: str, path: Path) -> Path:
    """A file that the model makes when it begins with one of those inputs."""
    return path.parent / f"{instance}.began"


def infer(
    engine: Engine, *tensors: dict[str, Any], timeout_s: float = DEADLINE_S
) -> dict[str, Any]:
    """Outputs by name; an error as {"error": ..., "status": ...}, as the server says it."""
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        body = json.dumps({"inputs": tensors})
        connection.request("POST", f"/v2/models/{quote(engine.name)}/infer", body)
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    if "error" in told:
        return {"error": told["error"], "status": answer.status}
    return {one["name"]: one["data"] for one in told["outputs"]}


def tensor(name: str, kind: str, *values: Any, shape: list[int] | None = None) -> dict[str, Any]:
    """One tensor in JSON."""
    return {"name": name, "datatype": kind, "shape": shape or [len(values)], "data": list(values)}


def doubled(engine: Engine, *values: float, timeout_s: float = DEADLINE_S) -> Any:
    """What `double` makes of numbers."""
    told = infer(engine, tensor("X", "FP32", *values), timeout_s=timeout_s)
    return told.get("Y", told.get("error"))


def server_of(engine: Engine) -> psutil.Process:
    """The server that holds an engine, by what the engine says."""
    return psutil.Process(engine.extra["server_pid"])


def torchscript(path: Path) -> Path:
    """A TorchScript file that gives the sum and the difference of two matrices."""
    path.parent.mkdir(parents=True)
    code = (
        "import sys, torch\n"
        "from typing import Tuple\n"
        "class Both(torch.nn.Module):\n"
        "    def forward(self, a: torch.Tensor, b: torch.Tensor) ->"
        " Tuple[torch.Tensor, torch.Tensor]:\n"
        "        return a + b, a - b\n"
        "torch.jit.script(Both()).save(sys.argv[1])\n"
    )
    source = path.parent.parent / "make.py"
    source.write_text(code)
    python = triton_layout.find().python
    subprocess.run([python, "-W", "ignore", source, path], check=True, capture_output=True)
    return path.parent


def onnx(path: Path, columns: int = 3) -> Path:
    """An ONNX file with Y = X + X for rows of `columns` numbers, written field by field."""
    path.parent.mkdir(parents=True)
    node = _text(1, "X") + _text(1, "X") + _text(2, "Y") + _text(4, "Add")
    graph = _part(1, node) + _text(2, "g") + _part(11, _info("X", columns))
    graph += _part(12, _info("Y", columns))
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _text(1, "") + _number(2, 13)))
    return path.parent


def _info(name: str, columns: int) -> bytes:
    shape = _part(1, _text(2, "rows")) + _part(1, _number(1, columns))
    return _text(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, shape)))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _part(field: int, content: bytes) -> bytes:
    assert len(content) < 128, "one byte for the length"
    return bytes([field << 3 | 2, len(content)]) + content


def _text(field: int, value: str) -> bytes:
    return _part(field, value.encode())
