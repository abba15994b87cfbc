"""`modelium run` with vLLM, Triton and Ray Serve at once, under `ilp`, as OpenAI clients see it."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from modelium.results.record import Run
from tests.live import tiny
from tests.live.running import running, still_there, sweep
from tests.managers.ray_house import needs_ray
from tests.managers.triton_house import ONE_THREAD, needs_triton
from tests.managers.vllm_house import needs_vllm

pytestmark = [
    pytest.mark.engines,
    needs_vllm(),
    needs_triton(),
    needs_ray(),
]

RUNTIMES = {"v1": "vllm", "v2": "vllm", "t1": "triton", "t2": "triton", "r1": "ray"}
REQUESTS = 40
SPAN_S = 60.0
STOPPING = "the server is stopping"


def config(folder: Path) -> dict[str, Any]:
    """Two pretended GPUs with room for two models each: one of the five has to be away."""
    one = {"weights": "1MiB", "kv": "64MiB", "overhead": "2GiB"}
    return {
        "cluster": {
            "gpus": [{"kind": "h100-80g", "memory": "5GiB", "count": 2}], "host_memory": "4GiB"
        },
        "models": {
            name: {**one, "runtime": runtime, "path": str(folder / name)}
            for name, runtime in RUNTIMES.items()
        },
        "vllm": {
            "environment": str(Path(".engines/vllm").absolute()),
            "default_settings": {"max_model_len": 512, "max_num_seqs": 8},
            "flags": ["--enforce-eager"],
            "env": {"OMP_NUM_THREADS": "1"},
        },
        "triton": {"environment": str(Path(".engines/triton").absolute()), "env": ONE_THREAD},
        "ray": {"environment": str(Path(".engines/ray").absolute())},
    }  # fmt: skip


def trace() -> list[tuple[float, str]]:
    """Arrivals of a minute: three models most of the time, the other two now and then."""
    rng = random.Random(1)
    times = sorted(rng.uniform(0.0, SPAN_S) for _ in range(REQUESTS))
    return [(at, rng.choices(list(RUNTIMES), (5, 1, 4, 1, 3))[0]) for at in times]


def test_a_trace_is_served_by_all_three(tmp_path: Path) -> None:
    for seed, name in enumerate(RUNTIMES):
        tiny.llama(tmp_path / name, seed=seed)
    try:
        with running(
            tmp_path / "run", config(tmp_path), "--policy", "ilp:every_s=20", "--out", "out"
        ) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            begun_s = time.monotonic()

            def ask(row: tuple[int, tuple[float, str]]) -> int:
                number, (at_s, model) = row
                # As late as in the trace, however long earlier requests wait.
                time.sleep(max(0.0, begun_s + at_s - time.monotonic()))
                how: dict[str, Any] = {"model": model, "prompt": "Once", "max_tokens": 8}
                if number % 2:
                    answer = client.completions.create(**how)
                    assert answer.usage is not None
                    return answer.usage.completion_tokens
                pieces = list(client.completions.create(**how, stream=True))
                assert pieces[-1].choices[0].finish_reason in ("stop", "length")
                return 1

            with ThreadPoolExecutor(REQUESTS) as pool:
                tokens = list(pool.map(ask, enumerate(trace())))
            assert len(tokens) == REQUESTS
            assert all(tokens)
            client.close()
            status = server.client.status()
            assert status["policy_faults"] == 0
            for gpu in status["gpus"]:
                held = sum(one["bytes_per_gpu"] for one in gpu["instances"])
                assert gpu["booked_bytes"] == held
                assert gpu["used_bytes"] <= gpu["memory_bytes"]
            lines = server.client.decisions(limit=1000)
            assert all(line["reason"] for line in lines)
            assert not [line for line in lines if line["error"] and line["instance"]]
            assert {RUNTIMES[line["model"]] for line in lines} == {"vllm", "triton", "ray"}
            assert server.end() == 0
        assert still_there(tmp_path) == []
        run = Run.read(tmp_path / "run" / "out")
        assert run.summary["requests"]["completed"] == REQUESTS
        errors = {line["error"] for line in run.decisions.to_pylist()}
        assert errors <= {"", STOPPING}, "the plan may have begun something as the end came"
    finally:
        sweep(tmp_path)
