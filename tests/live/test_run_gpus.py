"""`modelium run` on GPUs that a driver tells of: lost and back, used by others, needs measured."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from tests.live.nvml import GIB, LOST, FakeDriver
from tests.live.running import WITHIN_S, Running, running, still_there, sweep, until

MODELS = ["llama-3.1-8b", "qwen2.5-7b"]
SMALL = "llama-3.2-1b"
CONFIG: dict[str, Any] = {
    "models": [{"name": name, "runtime": "emulated"} for name in MODELS],
    "emulated": {"speed": 50},
    "policy": "lru",  # whose copies have their models' own KV pools, on the GPU with most room
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
        [host] = server.client.status()["hosts"]  # what this machine has, not twice the GPUs'
        assert host["capacity_bytes"] < psutil.virtual_memory().total
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
    """On a GPU that the catalogue does not know: it serves like any other."""
    driver = FakeDriver(folder, "NVIDIA Colossus 1")
    with running(folder / "run", CONFIG, env=driver.environment) as server:
        [before] = server.client.status()["gpus"]
        assert before["kind"] == "colossus-1-80g"
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
    """A small model: its weights have to fit in the RAM of this machine."""
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3")
    config = CONFIG | {"models": [{"name": SMALL, "runtime": "emulated"}]}
    with running(folder / "run", config, env=driver.environment) as server:
        ask(server, SMALL)
        [instance] = server.client.models()[0]["instances"]
        server.client.act(SMALL, "sleep")
        driver.processes = [(0, instance["pid"], 30 * GIB, "c")]
        driver.write()
        server.client.act(SMALL, "wake")  # it is measured when it has come up
        until(lambda: server.client.models()[0]["bytes_per_gpu"] == 30 * GIB)
        # Some of it does not come back: it sleeps on, and keeps what it keeps.
        driver.processes = [(0, instance["pid"], 4 * GIB, "c")]
        driver.write()
        server.client.act(SMALL, "sleep")
        [sleeper] = server.client.models()[0]["instances"]
        assert (sleeper["phase"], sleeper["pid"]) == ("asleep", instance["pid"])
        assert sleeper["bytes_per_gpu"] == 4 * GIB
        assert server.client.status()["gpus"][0]["booked_bytes"] == 4 * GIB
        driver.processes = [(0, instance["pid"], 30 * GIB, "c")]
        driver.write()
        server.client.act(SMALL, "wake")
        driver.processes = []
        driver.write()
        assert server.end() == 0
    with running(folder / "run", config, env=driver.environment) as server:  # and it is kept
        assert server.client.models()[0]["bytes_per_gpu"] == 30 * GIB
        server.end()
    assert still_there(folder) == []


def engines(folder: Path) -> dict[str, list[str]]:
    """By model: the GPUs by UUID that its engine was given, as the journal has it."""
    with closing(sqlite3.connect(folder / "run" / ".modelium" / "journal.db")) as db:
        rows = db.execute("SELECT model, engine FROM engines WHERE phase = 'ready'").fetchall()
    return {model: json.loads(engine)["uuids"] for model, engine in rows}


def test_gpus_are_chosen_lost_from_the_start_and_counted_anew(folder: Path) -> None:
    """What the environment leaves, of that `cluster.use`, and of that what works; by UUID."""
    driver = FakeDriver(folder, *["NVIDIA H100 80GB HBM3"] * 6)
    driver.status[0] = LOST
    driver.write()
    models = [
        {"name": MODELS[0], "runtime": "emulated"},
        {"name": MODELS[1], "runtime": "emulated", "gpus_allowed": ["GPU-0004"]},
    ]
    config = {**CONFIG, "models": models, "cluster": {"use": [0, "GPU-0001", 3, 4]}}
    seen = {**driver.environment, "CUDA_VISIBLE_DEVICES": "0,1,3,GPU-0004,9,5"}
    with running(folder / "run", config, env=seen) as server:
        notes = server.wait_for("serving")["notes"]
        assert "3 GPUs found by NVML" in notes
        assert any("leaves out 2 GPUs: 2, 5" in note for note in notes)
        assert any("'9' names no GPU" in note for note in notes)
        assert any(note.startswith("GPU 0 is lost (GPU is lost") for note in notes)
        gpus = server.client.status()["gpus"]
        assert [gpu["id"] for gpu in gpus] == ["gpu0", "gpu1", "gpu3", "gpu4"]
        assert [bool(gpu["lost"]) for gpu in gpus] == [True, False, False, False]
        for model in MODELS:
            ask(server, model)
        places = {model["name"]: model["gpus"] for model in server.client.models()}
        assert places == {MODELS[0]: ["gpu1"], MODELS[1]: ["gpu4"]}, "not gpu3, which is as free"
        assert engines(folder) == {MODELS[0]: ["GPU-0001"], MODELS[1]: ["GPU-0004"]}
        assert [one["gpus_allowed"] for one in server.client.models()] == [None, ["gpu4"]]
        driver.status[0], driver.totals[0] = 0, 40 * GIB  # not what was taken for granted
        driver.write()
        until_gpus(server, lambda gpus: not gpus[0]["lost"])
        [back, *_] = until_gpus(server, lambda gpus: gpus[0]["memory_bytes"] < 40 * GIB)
        assert back["memory_bytes"] == int(40 * GIB * 0.9)
        server.end(signal.SIGKILL)
    # GPU 0 has gone altogether: the driver counts the others from 0.
    driver.names, driver.uuids = driver.names[1:], driver.uuids[1:]
    driver.status, driver.totals = driver.status[1:], {}
    driver.write()
    config["cluster"] = {"use": ["GPU-0001", "GPU-0004"]}
    with running(folder / "run", config, env=driver.environment) as server:
        assert "cluster.use leaves out GPU 1, 2, 4" in server.wait_for("serving")["notes"]
        models = server.client.models()
        assert {one["name"]: one["gpus"] for one in models} == {
            MODELS[0]: ["gpu0"], MODELS[1]: ["gpu3"],
        }  # fmt: skip
        assert [one["status"] for one in models] == ["ready", "ready"], "they were adopted"
        ask(server, MODELS[1])
        assert server.end() == 0
    assert still_there(folder) == []


def test_check_lists_the_gpus_that_may_be_used(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, *["NVIDIA H100 80GB HBM3"] * 3, "NVIDIA L4")
    driver.status[1] = LOST
    driver.instances = {2: {}}
    driver.write()
    seen = {**driver.environment, "CUDA_VISIBLE_DEVICES": "0,1", "MODELIUM_CONFIG": ""}
    command = [sys.executable, "-m", "modelium", "check", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=seen, capture_output=True, check=False)
    findings = json.loads(done.stdout)
    about = {f["what"]: f for f in findings if f["what"].startswith("GPU ")}
    assert {what: one["verdict"] for what, one in about.items()} == {"GPU 0": "ok", "GPU 1": "note"}
    assert "lost" in about["GPU 1"]["says"]
    notes = [f["says"] for f in findings if f["what"] == "GPUs"]
    assert any("leaves out 1 GPU: 3" in note for note in notes)
    assert any("GPU 2 is in MIG mode and has no instances: make some" in note for note in notes)


def test_engines_are_known_where_the_driver_has_other_process_numbers(folder: Path) -> None:
    """As in a container without the host's pid namespace: a namespace of the server's own."""
    within = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    try:
        subprocess.run([*within, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no pid namespace can be made: {error}")
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3")
    config = {**CONFIG, "emulated": {"speed": 5}}
    whole = int(80 * GIB * 0.9)
    with running(folder / "run", config, env=driver.environment, within=within) as server:

        def comes_up(model: str, listed: bool) -> int:
            """Load it; its process, by the host's number, is listed while it loads, or not."""
            before = set(started())
            with ThreadPoolExecutor() as threads:
                loading = threads.submit(server.client.act, model, "load")
                [pid] = until(lambda: set(started()) - before)
                if listed:
                    driver.processes = [(0, pid, 30 * GIB, "c")]
                    driver.write()
                loading.result()
            return int(pid)

        def started() -> list[int]:
            """Emulated engines, by the host's numbers."""
            found = psutil.Process(server.process.pid).children(recursive=True)
            return [one.pid for one in found if str(folder) in " ".join(one.cmdline())]

        first = comes_up(MODELS[0], listed=True)
        until(lambda: server.client.models()[0]["bytes_per_gpu"] == 30 * GIB)  # it was measured
        assert server.client.status()["gpus"][0]["memory_bytes"] == whole, "and is nobody else's"
        second = comes_up(MODELS[1], listed=False)
        assert "--pid=host" in server.wait_for("memory", instance=f"{MODELS[1]}#2")["why"]
        given = server.client.models()[1]["bytes_per_gpu"]
        others = given + 25 * GIB
        driver.processes += [(0, second, given, "c"), (0, FOREIGN, 25 * GIB, "c")]
        driver.write()
        [gpu] = until_gpus(server, lambda gpus: gpus[0]["memory_bytes"] < whole)
        assert gpu["memory_bytes"] == 80 * GIB - (others - given), "what is not ours, once"
        assert gpu["used_bytes"] == 30 * GIB + others
        assert first != second
        [inner] = psutil.Process(server.process.pid).children()
        inner.terminate()
        assert server.process.wait(WITHIN_S) == 0
    assert still_there(folder) == []


def test_mig_instances_are_planned_with_by_their_own_size(folder: Path) -> None:
    driver = FakeDriver(folder, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    name = "NVIDIA H100 80GB HBM3 MIG 1g.20gb"
    driver.instances = {0: {i: (f"MIG-{i}", 20 * GIB, name) for i in (0, 3)}}
    driver.write()
    with running(folder / "run", CONFIG, env=driver.environment) as server:
        gpus = server.client.status()["gpus"]
        assert [gpu["id"] for gpu in gpus] == ["gpu1", "gpu0:0", "gpu0:3"]
        assert [gpu["memory_bytes"] for gpu in gpus] == [int(n * GIB * 0.9) for n in (80, 20, 20)]
        ask(server, MODELS[0])
        assert server.client.models()[0]["gpus"] == ["gpu1"]
        assert server.end() == 0
    assert still_there(folder) == []
