"""The commands that speak to a running server, against one with emulated engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelium.client.client import Client
from tests.live import tiny
from tests.live.running import WITHIN_S, Running, running, sweep

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
def modelium(server: Running, key: str) -> Iterator[Said]:
    """A command for the server; what a test has pinned is free again after it."""

    def run(*args: str, key: str = key) -> tuple[int, str, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "modelium", *args],
            cwd=server.folder, capture_output=True, text=True, timeout=WITHIN_S,
            env={**os.environ, "MODELIUM_URL": server.url, "MODELIUM_API_KEY": key},
        )  # fmt: skip
        return ended.returncode, ended.stdout, ended.stderr

    yield run
    there = Client(server.url, key)
    for model in there.models():
        if model["pinned"]:
            there.act(model["name"], "unpin")


@contextmanager
def watching(folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """`modelium watch`, which has begun to tell; it ends with the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "modelium", "watch", "--json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **env},
    ) as watch:  # fmt: skip
        try:
            assert watch.stdout is not None
            assert watch.stdout.readline()  # something is told every second
            yield watch
        finally:
            watch.kill()


def test_a_model_is_loaded_seen_explained_and_unloaded(modelium: Said) -> None:
    assert modelium("load", "mistral-7b") == (0, "mistral-7b is ready on gpu0\n", "")
    code, out, _ = modelium("status")
    assert code == 0
    assert "1 GPU (simulated)" in out
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
    with watching(server.folder, MODELIUM_URL=server.url, MODELIUM_API_KEY=key) as watch:
        assert modelium("load", "qwen2.5-7b")[0] == 0
        assert modelium("unload", "qwen2.5-7b")[0] == 0
        kinds = set()
        for line in watch.stdout or ():
            event = json.loads(line)
            kinds.add(event["event"])
            if event["event"] == "done" and event["kind"] == "unload":
                break
    assert {"decision", "done"} <= kinds


def test_wrong_words_are_one_line(modelium: Said, server: Running) -> None:
    for args, key, says in (
        (("load", "mistral"), None, "404: no model called 'mistral'. Did you mean 'mistral-7b'?"),
        (("explain", "mistral"), None, "no model called 'mistral'. Did you mean 'mistral-7b'?"),
        (("explain", "mistral", "--json"), None, "Did you mean 'mistral-7b'?"),
        (("logs", "nobody"), None, "no model called 'nobody'."),
        (("logs", "mistral-7b", "-n", "-1"), None, "-1 is not in the range"),
        (("status",), "mk-wrong", "401: unknown API key"),
        (("status", "--url", "http://127.0.0.1:9"), None, "no answer from http://127.0.0.1:9"),
        (("status", "--url", "127.0.0.1:9"), None, "no answer from http://127.0.0.1:9"),
        (("status", "--url", "http://a b"), None, "'http://a b' is no server's address"),
        (("status", "--url", "http://:80"), None, "'http://:80' is no server's address"),
        (("status", "--url", "http://h:1e9"), None, "'http://h:1e9' is no server's address"),
        (("status", "--url", "ftp://h"), None, "'ftp://h' is no server's address"),
        (("status",), "mk-\n", "no key has such characters"),
        (("replay", "--trace", "-", "--speed", "nan"), None, "nan is not a finite number"),
    ):
        code, out, err = modelium(*args) if key is None else modelium(*args, key=key)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert says in line


def test_a_model_is_added_and_deleted(modelium: Said, server: Running) -> None:
    tiny.llama(server.folder / "tiny")
    code, first, _ = modelium("add", "tiny", "org/tiny", "--json")
    assert code == 0
    assert json.loads(first)["runtime"] == "vllm"
    assert (server.folder / "tiny" / "config.json").is_file()  # copied, not moved
    code, _, err = modelium("add", "tiny", "org/tiny")
    assert code == 2
    assert "already" in err
    tiny.llama(server.folder / "tiny", layers=3)
    code, out, _ = modelium("add", "tiny", "org/tiny", "--replace", "--json")
    assert code == 0
    assert json.loads(out)["weights_bytes"] > json.loads(first)["weights_bytes"]
    code, _, err = modelium("add", "tiny", "qwen2.5-7b")
    assert code == 2
    assert "without files: say `path: models/qwen2.5-7b` there" in err
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


def test_nothing_that_can_be_sent_is_no_success(modelium: Said, server: Running) -> None:
    (server.folder / "others.csv").write_text(
        "arrival_s,model,prompt_tokens,output_tokens\n0,nobody,1,1\n"
    )
    code, out, err = modelium("replay", "--trace", "others.csv")
    assert (code, out) == (2, "")
    assert "has none of the trace's models: nobody; it serves mistral-7b" in err
    code, _, err = modelium("replay", "--trace", "others.csv", key="mk-wrong")
    assert (code, err.count("\n")) == (2, 1)
    assert "401: unknown API key" in err


@pytest.mark.parametrize("body", ["<p>nothing here", "[1]", '{"gpus": []', "{}"])
def test_another_server_is_told_apart(other: Callable[[str], str], body: str) -> None:
    for args in (("status",), ("list",), ("usage",), ("explain",), ("load", "x"), ("delete", "x")):
        code, out, err = _modelium(*args, "--url", other(body))
        assert (code, out) == (2, "")
        assert err.endswith(
            "is something else than Modelium's gateway; --url or $MODELIUM_URL names another"
            " address\n"
        ), err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_watches_is_told_of_the_end(tmp_path: Path, how: int) -> None:
    with (
        running(tmp_path, CONFIG | {"gateway": {}}, "--emulate") as server,
        watching(tmp_path, MODELIUM_URL=server.url) as watch,
    ):
        server.end(how)
        _, err = watch.communicate(timeout=WITHIN_S)
    assert watch.returncode == 2
    [line] = err.splitlines()
    assert line.startswith(f"modelium: {server.url} ")


def test_a_replay_from_within_has_the_key_and_tells_its_end(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "arrival_s,model,prompt_tokens,output_tokens\n0,mistral-7b,10,5\n0,nobody,1,1\n"
    )
    made = _modelium("key", "make", "ops", "--file", str(tmp_path / "keys.json"))
    key = {"MODELIUM_API_KEY": made[1].strip()}
    options = ("--emulate", "--replay", "trace.csv")
    with running(tmp_path, CONFIG, *options, env=key) as server:
        told = server.wait_for("replayed")
        assert (told["sent"], told["completed"], told["skipped"]) == (1, 1, 1)
        assert server.end() == 0
    sweep(tmp_path)
    with running(tmp_path, CONFIG, *options, env={"MODELIUM_API_KEY": "mk-wrong"}) as server:
        assert server.process.wait(WITHIN_S) == 2
    assert "401: unknown API key" in (tmp_path / "stderr").read_text().splitlines()[-1]


def _modelium(*args: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "modelium", *args], capture_output=True, text=True, timeout=WITHIN_S
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def other() -> Iterator[Callable[[str], str]]:
    """A server that answers this to everything."""
    servers = []

    def start(body: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_DELETE = do_GET  # noqa: N815 - the library's names

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_lines_of_the_log_and_events_carry_wall_clock_time(server: Running) -> None:
    server.wait_for("serving")
    for event in list(server.events):
        moment = datetime.fromisoformat(event["time"])
        assert event["time"].endswith("Z")
        assert timedelta() <= datetime.now(UTC) - moment < timedelta(seconds=WITHIN_S)
    with server.changed:
        assert list(server.events[0])[:2] == ["time", "event"]
