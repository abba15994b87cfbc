"""What real models refuse reaches the client as a refusal, and what breaks in them as 502."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from modelium.managers import environment
from modelium.managers.triton import layout as triton_layout
from tests.live import tiny
from tests.live.running import WITHIN_S, Running, running, still_there, sweep
from tests.managers.ray_house import needs_ray
from tests.managers.triton_house import FAIL, ONE_THREAD, REFUSE, config, double, needs_triton

pytestmark = [pytest.mark.engines, needs_triton(), needs_ray()]

OWN = """
from starlette.exceptions import HTTPException

class Own:
    def __call__(self, body):
        if body["prompt"] == "fail":
            raise KeyError("table")
        raise HTTPException(422, "a prompt in French, please")
"""


def refused(server: Running, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and words of an answer that is none."""
    answer = httpx2.post(f"{server.url}{path}", json=body, timeout=WITHIN_S)
    error = answer.json()["error"]
    return answer.status_code, error["message"] if isinstance(error, dict) else error


def test_refusals_and_failures_of_models_are_told_apart(tmp_path: Path) -> None:
    config(double(tmp_path / "double"), tmp_path / "began")
    tiny.llama(tmp_path / "llama", context=64)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.py").write_text(OWN)
    slow = {"infer": {"latency": [0.01]}, "weights": "1GiB"}
    asked = {
        "cluster": {"gpus": [{"kind": "h100-80g", "count": 1}]},
        "model_repository": str(tmp_path),
        "models": {
            "double": {"path": "double", "runtime": "triton", **slow},
            "llama": {"path": "llama", "runtime": "triton", "weights": "1GiB"},
            "own": {"path": "own", "runtime": "ray", **slow},
        },
        "triton": {"env": ONE_THREAD, "environment": str(triton_layout.find().python.parents[1])},
        "ray": {"env": ONE_THREAD, "environment": str(environment.find("ray", "ray").parents[1])},
    }

    def tensor(value: float) -> dict[str, Any]:
        return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [value]}]}

    try:
        with running(tmp_path / "run", asked) as server:
            status, why = refused(server, "/v2/models/double/infer", tensor(REFUSE))
            assert (status, "X must be positive" in why) == (400, True), why
            status, why = refused(server, "/predict/double", {"inputs": [FAIL]})
            assert (status, "no such table" in why) == (502, True), why
            long = {"model": "llama", "prompt": "x" * 60, "max_tokens": 10}
            status, why = refused(server, "/v1/completions", long)
            assert (status, "60 tokens and 10 more exceed the context, 64" in why) == (400, True)
            assert refused(server, "/predict/own", {"prompt": "hello"}) == (
                422,
                "a prompt in French, please",
            )
            status, why = refused(server, "/predict/own", {"prompt": "fail"})
            assert (status, why) == (502, "KeyError: 'table'")
            assert server.end() == 0
        assert still_there(tmp_path) == []
    finally:
        sweep(tmp_path)
