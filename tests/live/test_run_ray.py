"""`modelium run` with a real Ray Serve: two kinds of models take turns on one GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import OpenAI

from modelium.managers import environment
from tests.live import tiny
from tests.live.running import WITHIN_S, Running, running, still_there, sweep
from tests.managers.ray_house import double, needs_ray, processes_of

pytestmark = [pytest.mark.engines, needs_ray()]


def post(server: Running, path: str, body: dict[str, Any]) -> Any:
    answer = httpx2.post(f"{server.url}{path}", json=body, timeout=WITHIN_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_language_model_and_a_users_class_take_turns(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "llama")
    double(tmp_path / "double")
    models = {
        "llama": {"path": "llama", "runtime": "ray", "weights": "30GiB"},
        "double": {"path": "double", "runtime": "ray", "weights": "30GiB"}
        | {"infer": {"latency": [0.01]}},
    }
    asked = {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": "50GiB", "count": 1}]},
        "model_repository": str(tmp_path),
        "models": models,
        "ray": {"environment": str(environment.find("ray", "ray").parents[1])},
        "policy": "lru",
    }
    folder = tmp_path / "run"
    logs = folder / ".modelium" / "ray"
    try:
        with running(folder, asked) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            told = client.completions.create(
                model="llama", prompt="Once", max_tokens=5, temperature=0
            )
            assert told.usage is not None
            assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (4, 5)
            answer = post(server, "/predict/double", {"inputs": [], "x": [3, 4]})
            assert (answer["y"], answer["gpu"]) == ([6, 8], "0")
            assert not _serve(logs, "llama"), "it left to make room"
            again = client.completions.create(
                model="llama", prompt="Once", max_tokens=5, temperature=0, stream=True
            )
            assert "".join(piece.choices[0].text for piece in again) == told.choices[0].text
            client.close()
            [replica] = _serve(logs, "llama")
            replica.kill()
            answer = post(server, "/predict/llama", {"prompt": "Once", "max_tokens": 5})
            assert answer["usage"]["completion_tokens"] == 5
            assert processes_of(logs)
            assert server.end() == 0
        assert processes_of(logs) == still_there(tmp_path) == []
    finally:
        sweep(tmp_path)


RETURNS_LATE = """
import os, time

class Model:
    def __init__(self, path):
        with open(os.path.join(path, "built"), "a+") as built:
            built.write("x")
            built.seek(0)
            self.number = len(built.read())
        if self.number == 2:
            time.sleep(10_000)

    def __call__(self, body):
        return {"from": self.number}
"""


def test_who_waits_for_a_replica_that_does_not_return_is_served_by_another(tmp_path: Path) -> None:
    folder, logs = tmp_path / "run", tmp_path / "run" / ".modelium" / "ray"
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "model.py").write_text(RETURNS_LATE)
    model = {"path": "late", "runtime": "ray", "weights": "30GiB", "infer": {"latency": [0.01]}}
    asked = {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": "50GiB", "count": 1}]},
        "model_repository": str(tmp_path),
        "models": {"late": model},
        "ray": {"environment": str(environment.find("ray", "ray").parents[1])},
        "live": {"stall": "2s", "probe_every": "1s", "stop_grace": "3s"},
    }
    try:
        with running(folder, asked) as server, ThreadPoolExecutor() as pool:
            assert post(server, "/predict/late", {}) == {"from": 1}
            [replica] = _serve(logs, "late")
            replica.kill()
            replica.wait()
            asking = pool.submit(post, server, "/predict/late", {})  # waits in Ray's own proxy
            assert asking.result(WITHIN_S) == {"from": 3}
            assert server.wait_for("lost")["instance"] == "late#1"
            assert server.end() == 0
        assert processes_of(logs) == still_there(tmp_path) == []
    finally:
        sweep(tmp_path)


def _serve(logs: Path, model: str) -> list[psutil.Process]:
    """Replicas of a model."""
    begin = f"ray::ServeReplica:{model}-"
    return [one for one in processes_of(logs) if one.cmdline()[0].startswith(begin)]
