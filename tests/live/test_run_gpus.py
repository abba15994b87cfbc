"""`modelium run` on GPUs that a driver tells of: lost and back, used by others, needs measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.live.nvml import GIB, LOST, FakeDriver
from tests.live.running import Running, running, still_there, sweep, until

MODELS = ["llama-3.1-8b", "qwen2.5-7b"]
CONFIG: dict[str, Any] = {
    "models": [{"name": name, "runtime": "emulated"} for name in MODELS],
    "emulated": {"speed": 50},
}
FOREIGN = 999_999
"""A process that is not ours; no such process runs, as far as the driver is not concerned."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweep(tmp_path)


def ask(server: Running, model: str) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert client.completions.create(model=model, prompt="x", max_tokens=2).choices


def until_gpus(server: Running, true: Any) -> list[dict[str, Any]]:
    """Look until the GPUs are so; each look asks the server, which looks once a second itself."""

    def look() -> list[dict[str, Any]] | None:
        gpus: list[dict[str, Any]] = server.client.status()["gpus"]
        return gpus if true(gpus) else None

    found: list[dict[str, Any]] = until(look)
    return found


def test_a_lost_gpu_loses_its_models_and_comes_back(folder: Path) -> None:
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    with running(folder / "run", CONFIG, env=driver.environment) as server:
        assert server.client.status()["pretend_gpus"] is False
        ask(server, MODELS[0])
        [where] = server.client.models()[0]["gpus"]
        number = int(where.removeprefix("gpu"))
        driver.status[number] = LOST
        driver.write()
        server.wait_for("lost", model=MODELS[0])
        until_gpus(server, lambda gpus: gpus[number]["lost"] and not gpus[number]["instances"])
        ask(server, MODELS[0])  # it is loaded on the other one
        [now] = server.client.models()[0]["gpus"]
        assert now != where
        driver.status[number] = 0
        driver.write()
        until_gpus(server, lambda gpus: not gpus[number]["lost"])
        server.client.act(MODELS[1], "load")
        assert server.client.models()[1]["gpus"] == [where]
        assert server.end() == 0
    assert still_there(folder) == []


def test_what_others_hold_is_not_given_away(folder: Path) -> None:
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3")
    with running(folder / "run", CONFIG, env=driver.environment) as server:
        [before] = server.client.status()["gpus"]
        driver.processes = [(0, FOREIGN, 70 * GIB, "c")]
        driver.write()
        [gpu] = until_gpus(server, lambda gpus: gpus[0]["memory_bytes"] == 10 * GIB)
        assert gpu["used_bytes"] == 70 * GIB
        with pytest.raises(Exception, match=r"Error code: 503.*within \d+ s.*10\.0 GiB at the m"):
            OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).with_options(
                default_headers={"X-Max-Wait": "1"}
            ).completions.create(model=MODELS[0], prompt="x", max_tokens=2)
        driver.processes = []
        driver.write()
        until_gpus(server, lambda gpus: gpus[0]["memory_bytes"] == before["memory_bytes"])
        ask(server, MODELS[0])
        assert server.end() == 0
    assert still_there(folder) == []


def test_what_a_copy_was_seen_to_hold_is_its_size_from_then_on(folder: Path) -> None:
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3")
    with running(folder / "run", CONFIG, env=driver.environment) as server:
        ask(server, MODELS[0])
        [instance] = server.client.models()[0]["instances"]
        server.client.act(MODELS[0], "sleep")
        driver.processes = [(0, instance["pid"], 30 * GIB, "c")]
        driver.write()
        server.client.act(MODELS[0], "wake")  # it is measured when it has come up
        until(lambda: server.client.models()[0]["bytes_per_gpu"] == 30 * GIB)
        # Half of it does not come back: it sleeps on, and keeps what it keeps.
        driver.processes = [(0, instance["pid"], 15 * GIB, "c")]
        driver.write()
        server.client.act(MODELS[0], "sleep")
        [sleeper] = server.client.models()[0]["instances"]
        assert (sleeper["phase"], sleeper["pid"]) == ("asleep", instance["pid"])
        assert sleeper["bytes_per_gpu"] == 15 * GIB
        assert server.client.status()["gpus"][0]["booked_bytes"] == 15 * GIB
        driver.processes = [(0, instance["pid"], 30 * GIB, "c")]
        driver.write()
        server.client.act(MODELS[0], "wake")
        driver.processes = []
        driver.write()
        assert server.end() == 0
    with running(folder / "run", CONFIG, env=driver.environment) as server:  # and it is kept
        assert server.client.models()[0]["bytes_per_gpu"] == 30 * GIB
        server.end()
    assert still_there(folder) == []
