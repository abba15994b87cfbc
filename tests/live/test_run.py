"""`modelium run` with emulated engines: what users, operators and accidents do to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from modelium.results.record import Run
from tests.live import tiny
from tests.live.running import (
    WITHIN_S,
    Running,
    left_behind,
    running,
    still_there,
    sweep,
    until,
)

CONFIG: dict[str, Any] = {
    "cluster": {"gpus": [{"kind": "h100-80g", "memory": "40GiB", "count": 1}]},
    "models": ["llama-3.1-8b", "qwen2.5-7b", "mistral-7b"],
    "emulated": {"speed": 50},
}
"""One GPU with room for one model at a time."""
LONG_LOAD = {
    **CONFIG,
    "models": {"mistral-7b": {"settings": {"stages": {"process": 0.0, "weights": 1e8}}}},
}
"""It takes weeks."""
ENDLESS = {
    **CONFIG,
    "models": {
        "mistral-7b": {
            "kv": "4GiB",
            "settings": {
                "max_model_len": 10_000_000,
                "engine": {"kind": "generate", "kv_tokens": 10_000_000, "step": {"decode_c": 0.1}},
            },
        }
    },
}
TOKENS = 9_000_000
"""Asked of it, they take ten days."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweep(tmp_path)


def user(server: Running, **more: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **more)


def test_openai_clients_are_served_streaming_and_not(folder: Path) -> None:
    with running(folder, CONFIG, "--emulate", "--out", "out") as server:
        client = user(server)
        assert {model.id for model in client.models.list()} == set(CONFIG["models"])
        whole = client.chat.completions.create(
            model="qwen2.5-7b", messages=[{"role": "user", "content": "hi"}], max_tokens=7
        )
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 7
        pieces = list(
            client.completions.create(model="mistral-7b", prompt="hello", max_tokens=9, stream=True)
        )
        assert len(pieces) == 9
        assert all(piece.usage is None for piece in pieces)
        last = list(
            client.completions.create(
                model="mistral-7b", prompt="hello", max_tokens=9, stream=True,
                stream_options={"include_usage": True},
            )
        )[-1]  # fmt: skip
        assert last.usage is not None
        assert last.usage.completion_tokens == 9
        with pytest.raises(openai.NotFoundError, match=r"Did you mean 'qwen2\.5-7b'"):
            client.completions.create(model="qwen2.5-8b", prompt="x")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="mistral-7b", prompt="x", max_tokens=-1)
        # A client may have read the end of a stream before the server has noted it.
        until(lambda: server.client.usage()[0]["output_tokens"] == 7 + 9 + 9)
        assert server.end() == 0
    assert still_there(folder) == []
    summary = Run.read(folder / "out").summary
    assert summary["requests"]["completed"] == 3
    assert (folder / "out" / "report.html").stat().st_size > 10_000


def test_after_a_kill_the_next_server_adopts_the_engines(folder: Path) -> None:
    with running(folder, CONFIG, "--emulate") as server:
        user(server).completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        [before] = server.client.status()["gpus"][0]["instances"]
        server.end(signal.SIGKILL)
    assert left_behind(folder) == [before["pid"]]
    with running(folder, CONFIG, "--emulate") as server:
        [now] = server.client.status()["gpus"][0]["instances"]
        assert (now["id"], now["pid"], now["phase"]) == (before["id"], before["pid"], "ready")
        user(server).completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        assert server.client.decisions() == []
        server.end()
    assert still_there(folder) == []


def test_a_load_that_was_under_way_at_a_kill_is_undone(folder: Path) -> None:
    with running(folder, LONG_LOAD, "--emulate") as server, ThreadPoolExecutor() as pool:
        asking = pool.submit(
            user(server).completions.create, model="mistral-7b", prompt="x", max_tokens=1
        )
        server.wait_for("progress", stage="weights")
        server.end(signal.SIGKILL)
        with pytest.raises(openai.APIConnectionError):
            asking.result()
    assert len(left_behind(folder)) == 1
    with running(folder, CONFIG, "--emulate") as server:
        assert still_there(folder) == []
        user(server).completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        server.end()
    assert still_there(folder) == []


def test_engines_that_are_kept_at_the_end_are_there_at_the_next_start(folder: Path) -> None:
    with running(folder, CONFIG, "--emulate", "--keep-engines") as server:
        user(server).completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        assert server.end() == 0
    assert len(left_behind(folder)) == 1
    with running(folder, CONFIG, "--emulate") as server:
        assert server.client.models()[2]["status"] == "ready"
        server.end()
    assert still_there(folder) == []


def test_requests_in_flight_at_sigterm_are_answered(folder: Path) -> None:
    patient = {**CONFIG, "live": {"probe_every": "1h", "stall": "1h", "shutdown": "1h"}}
    with running(folder, patient, "--emulate") as server, ThreadPoolExecutor(8) as pool:
        client = user(server)
        client.completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        [engine] = server.client.status()["gpus"][0]["instances"]
        os.kill(engine["pid"], signal.SIGSTOP)  # nobody is answered before the end has begun
        asking = [
            pool.submit(client.completions.create, model="mistral-7b", prompt="x", max_tokens=40)
            for _ in range(8)
        ]
        until(lambda: server.client.status()["gpus"][0]["instances"][0]["running"] == 8)
        server.send(signal.SIGTERM)
        until(lambda: server.client.status()["stopping"])
        assert not any(asked.done() for asked in asking)
        os.kill(engine["pid"], signal.SIGCONT)
        for asked in asking:
            answer = asked.result()
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 40
        assert server.process.wait(WITHIN_S) == 0
    assert still_there(folder) == []


def test_an_engine_killed_in_mid_stream_ends_the_stream_with_one_clear_error(folder: Path) -> None:
    with running(folder, ENDLESS, "--emulate") as server:
        client = user(server)
        pieces = client.completions.create(
            model="mistral-7b", prompt="x", max_tokens=TOKENS, stream=True
        )
        next(iter(pieces))
        [engine] = server.client.status()["gpus"][0]["instances"]
        os.killpg(engine["pid"], signal.SIGKILL)
        with pytest.raises(openai.APIError, match="broke in the middle"):
            list(pieces)
        assert client.completions.create(model="mistral-7b", prompt="x", max_tokens=3).choices
        server.end()
    assert still_there(folder) == []


def test_a_client_that_leaves_frees_its_engine(folder: Path) -> None:
    with running(folder, ENDLESS, "--emulate") as server:
        client = user(server)
        client.completions.create(model="mistral-7b", prompt="x", max_tokens=1)
        pieces = client.completions.create(
            model="mistral-7b", prompt="x", max_tokens=TOKENS, stream=True
        )
        next(iter(pieces))
        assert server.client.status()["running"] == 1
        pieces.close()
        until(lambda: not server.client.status()["running"])
        [engine] = server.client.status()["gpus"][0]["instances"]
        assert engine["running"] == 0
        server.end()


def test_a_port_that_is_taken_is_told_in_one_line(folder: Path) -> None:
    (folder / "modelium.yaml").write_text(json.dumps({**CONFIG, "metrics": {"enabled": False}}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "modelium", "run", "--emulate", "--port", str(port)],
            cwd=folder, capture_output=True, text=True, timeout=WITHIN_S,
        )  # fmt: skip
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "Choose another gateway.port" in line
    assert still_there(folder) == []


def test_metrics_are_served_where_the_configuration_says(folder: Path) -> None:
    # Nobody else gets this port meanwhile, and nobody answers at it on the usual address.
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        config = {**CONFIG, "metrics": {"host": "127.0.0.2", "port": port}}
        with running(folder, config, "--emulate") as server:
            with urllib.request.urlopen(f"http://127.0.0.2:{port}/metrics") as answer:
                assert b"# TYPE modelium_gpu_up gauge" in answer.read()
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
            assert server.end() == 0


@pytest.mark.parametrize(
    ("host", "says"),
    [("", "metrics.host"), ("192.0.2.1", "metrics cannot be served on 192.0.2.1:")],
)
def test_an_address_that_metrics_cannot_have_is_told(folder: Path, host: str, says: str) -> None:
    (folder / "modelium.yaml").write_text(json.dumps({**CONFIG, "metrics": {"host": host}}))
    refuses_to_start(folder, says)


def refuses_to_start(folder: Path, says: str, *options: str) -> None:
    """`modelium run` ends with one line that says so, exit code 2, and nothing of it left."""
    ended = subprocess.run(
        [sys.executable, "-m", "modelium", "run", "--emulate", "--port", "0", *options],
        cwd=folder, capture_output=True, text=True, timeout=WITHIN_S,
    )  # fmt: skip
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert says in line
    assert still_there(folder) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gpus", "4xh10"), "no GPU called 'h10' in the catalogue. Did you mean 'h100'?"),
        (("--gpus", "0xh100-80g"), "'0xh100-80g' has 0 GPUs"),
        (("--host", ""), "--host is empty; 127.0.0.1 is this machine"),
        (("--host", "host.invalid", "--insecure"), "cannot listen on host.invalid:0"),
        (("--policy", "lr"), "no policy called 'lr'. Did you mean 'lru'?"),
        (("--speed", "0"), "0.0 is not in the range x>0"),
        (("--replay", "nothing.csv"), "nothing.csv does not exist"),
        (("--out", "here", "--force"), "here exists and is not the folder of a run"),
        (("--out", "taken"), "taken exists already"),
        (("--out", "file/run"), "file/run: no run can be written: Not a directory"),
    ],
)
def test_wrong_options_are_told_before_anything_is_served(
    folder: Path, options: tuple[str, ...], says: str
) -> None:
    (folder / "modelium.yaml").write_text(json.dumps({**CONFIG, "metrics": {"enabled": False}}))
    for name in ("here", "taken"):
        (folder / name).mkdir()
    (folder / "file").touch()
    refuses_to_start(folder, says, *options)


def test_operators_have_the_last_word(folder: Path) -> None:
    with running(folder, CONFIG, "--emulate") as server:
        there = server.client
        assert there.act("mistral-7b", "load")["status"] == "ready"
        assert there.act("mistral-7b", "pin")["pinned"]
        with pytest.raises(Exception, match="409: mistral-7b is pinned"):
            there.act("mistral-7b", "unload")
        assert there.act("mistral-7b", "unpin")["status"] == "ready"
        assert there.act("mistral-7b", "sleep")["status"] == "asleep"
        assert there.act("mistral-7b", "wake")["status"] == "ready"
        assert there.act("mistral-7b", "unload")["status"] == "unloaded"
        with pytest.raises(Exception, match="404: no model called 'mistral'"):
            there.act("mistral", "load")
        there.delete("mistral-7b")
        assert len(there.models()) == 2
        kinds = [line["kind"] for line in there.decisions("mistral-7b")]
        assert kinds[::-1] == ["load", "unload", "sleep", "wake", "unload"]
        server.end()
    assert still_there(folder) == []


def test_a_server_takes_few_threads_and_files(folder: Path) -> None:
    with running(folder, CONFIG, "--emulate") as server:
        client = user(server)
        process = psutil.Process(server.process.pid)
        for name in CONFIG["models"] * 2:
            client.completions.create(model=name, prompt="x", max_tokens=1)
        files = process.num_fds()
        for name in CONFIG["models"] * 3:
            client.completions.create(model=name, prompt="x", max_tokens=1)
        until(lambda: process.num_fds() <= files + 2)  # what it closes, it closes soon
        server.end()


def test_models_that_are_put_into_the_repository_are_served(folder: Path) -> None:
    tiny.llama(folder / "source", seed=1)
    config = {**CONFIG, "model_repository": "repository", "models": ["mistral-7b"]}
    with running(folder, config, "--emulate") as server:
        incoming = folder / "repository" / "incoming"
        shutil.copytree(folder / "source", incoming / "org--tiny")
        server.wait_for("new-model", model="org/tiny")
        answer = user(server).completions.create(model="org/tiny", prompt="x", max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        (incoming / "broken").mkdir()
        (incoming / "broken" / "config.json").write_text("{")
        refused = server.wait_for("refused-model", model="broken")
        assert "config.json" in refused["why"]
        server.end()
    with running(folder, config, "--emulate") as server:  # it is there at the next start
        assert {one["name"] for one in server.client.models()} == {"mistral-7b", "org/tiny"}
        server.client.delete("org/tiny")
        assert not (folder / "repository" / "models" / "org" / "tiny").exists()
        with pytest.raises(openai.NotFoundError):
            user(server).completions.create(model="org/tiny", prompt="x")
        server.end()
    assert still_there(folder) == []
