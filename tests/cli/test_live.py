"""The commands that speak to a running server, against one with emulated engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import tiny
from tests.live.running import Running, running, sweep

CONFIG = {
    "cluster": {"gpus": [{"kind": "h100-80g", "memory": "40GiB", "count": 1}]},
    "models": ["qwen2.5-7b", "mistral-7b"],
    "emulated": {"speed": 100},
    "model_repository": "repository",
    "gateway": {"keys": "keys.json"},
}
Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("live")
    yield folder
    sweep(folder)


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    command = [sys.executable, "-m", "modelium", "key", "make", "ops", "--admin"]
    made = subprocess.run(
        [*command, "--file", "keys.json"], cwd=folder, capture_output=True, text=True, check=True
    )
    return made.stdout.strip()


@pytest.fixture(scope="module")
def server(folder: Path, key: str) -> Iterator[Running]:
    with running(folder, CONFIG, "--emulate") as server:
        yield server
        server.end()


@pytest.fixture
def modelium(server: Running, key: str) -> Said:
    def run(*args: str, key: str = key) -> tuple[int, str, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "modelium", *args],
            cwd=server.folder, capture_output=True, text=True, timeout=120,
            env={**os.environ, "MODELIUM_URL": server.url, "MODELIUM_API_KEY": key},
        )  # fmt: skip
        return ended.returncode, ended.stdout, ended.stderr

    return run


def test_a_model_is_loaded_seen_explained_and_unloaded(modelium: Said) -> None:
    assert modelium("load", "mistral-7b") == (0, "mistral-7b is ready on gpu0\n", "")
    code, out, _ = modelium("status")
    assert code == 0
    assert "1 GPUs (pretended)" in out
    assert "mistral-7b ●" in out
    code, out, _ = modelium("list")
    [line] = [line for line in out.splitlines() if line.startswith("mistral-7b")]
    assert line.split()[1:4] == ["ready", "emulated", "gpu0"]
    models = json.loads(modelium("list", "--json")[1])
    assert {model["name"] for model in models} == {"qwen2.5-7b", "mistral-7b"}
    code, out, _ = modelium("explain", "mistral-7b")
    assert out.splitlines()[0] == "mistral-7b is ready on gpu0; 0 wait for it"
    assert "load   mistral-7b on gpu0" in out
    told = json.loads(modelium("explain", "mistral-7b", "--json")[1])
    assert told["decisions"][0]["kind"] == "load"
    code, out, _ = modelium("logs", "mistral-7b")
    assert code == 0
    assert modelium("pin", "mistral-7b")[1] == "mistral-7b is ready on gpu0, pinned\n"
    code, out, err = modelium("unload", "mistral-7b")
    assert (code, out) == (2, "")
    assert err == "modelium: 409: mistral-7b is pinned\n"
    assert modelium("unpin", "mistral-7b")[0] == 0
    assert modelium("unload", "mistral-7b") == (0, "mistral-7b is unloaded\n", "")


def test_a_trace_is_replayed_and_its_use_is_told(modelium: Said, server: Running) -> None:
    (server.folder / "trace.csv").write_text(
        "arrival_s,model,prompt_tokens,output_tokens\n"
        "0,mistral-7b,10,5\n0.1,qwen2.5-7b,20,4\n0.2,mistral-7b,5,3\n0.3,nobody,1,1\n"
    )
    code, out, err = modelium("replay", "--trace", "trace.csv", "--json")
    assert code == 0, (out, err)
    tally = json.loads(out)
    assert (tally["sent"], tally["completed"], tally["skipped"]) == (3, 3, 1)
    [row] = json.loads(modelium("usage", "--json")[1])
    assert (row["organization"], row["requests"], row["output_tokens"]) == ("ops", 3, 12)
    assert "ops" in modelium("usage")[1]


def test_events_are_printed_as_they_come(modelium: Said, server: Running, key: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "modelium", "watch", "--json"],
        cwd=server.folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "MODELIUM_URL": server.url, "MODELIUM_API_KEY": key},
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        assert watching.stdout.readline()  # something is told every second
        assert modelium("load", "qwen2.5-7b")[0] == 0
        assert modelium("unload", "qwen2.5-7b")[0] == 0
        kinds = set()
        for line in watching.stdout:
            event = json.loads(line)
            kinds.add(event["event"])
            if event["event"] == "done" and event["kind"] == "unload":
                break
        watching.terminate()
    assert {"decision", "done"} <= kinds


def test_wrong_words_are_one_line(modelium: Said, server: Running) -> None:
    for args, key, says in (
        (("load", "mistral"), None, "404: no model called 'mistral'. Did you mean 'mistral-7b'?"),
        (("explain", "mistral"), None, "no model called 'mistral'. Did you mean 'mistral-7b'?"),
        (("logs", "nobody"), None, "no model called 'nobody'."),
        (("status",), "mk-wrong", "401: unknown API key"),
        (("status", "--url", "http://127.0.0.1:9"), None, "no answer from http://127.0.0.1:9"),
    ):
        code, out, err = modelium(*args) if key is None else modelium(*args, key=key)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert says in line


def test_a_model_is_added_and_deleted(modelium: Said, server: Running) -> None:
    tiny.llama(server.folder / "tiny")
    code, out, _ = modelium("add", "tiny", "org/tiny", "--json")
    assert code == 0
    assert json.loads(out)["runtime"] == "vllm"
    assert (server.folder / "tiny" / "config.json").is_file()  # copied, not moved
    code, _, err = modelium("add", "tiny", "org/tiny")
    assert code == 2
    assert "already" in err
    code, _, err = modelium("add", "tiny", "../tiny")
    assert code == 2
    assert "no name for a model" in err
    assert modelium("delete", "qwen2.5-7b") == (0, "qwen2.5-7b is removed\n", "")


def test_keys_are_made_listed_and_revoked(modelium: Said) -> None:
    code, secret, _ = modelium("key", "make", "alice", "--organization", "acme")
    assert code == 0
    assert modelium("status", key=secret.strip())[2].startswith("modelium: 403:")
    rows = json.loads(modelium("key", "list", "--json")[1])
    assert [(row["name"], row["organization"]) for row in rows] == [
        ("ops", "ops"),
        ("alice", "acme"),
    ]
    assert secret.strip() not in modelium("key", "list")[1]
    assert modelium("key", "revoke", "alice")[0] == 0
    assert modelium("status", key=secret.strip())[2].startswith("modelium: 401:")
    code, _, err = modelium("key", "revoke", "alice")
    assert (code, "no key called 'alice'" in err) == (2, True)
