"""A start takes first what may fail, and touches nothing before; who calls meanwhile is told."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from modelium.config import Config
from modelium.errors import ConfigError
from modelium.live.folder_lock import locked
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine
from modelium.managers.process import Processes
from modelium.serving import LaunchSpec, Server, serving
from modelium.serving.signals import Signals
from tests.live.harness import QUIET_S
from tests.live.running import WITHIN_S, left_behind, still_there, sweep

MODEL = "mistral-7b"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweep(tmp_path)


@contextmanager
def kept_port() -> Iterator[int]:
    """A port that nobody else gets meanwhile, and that a server may still take."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


def asked(folder: Path, port: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": "40GiB", "count": 1}]},
        "models": [MODEL],
        "emulated": {"speed": 1000},
        "metrics": {"enabled": False},
        "gateway": {"port": port} if port else {},
        "live": {"folder": str(folder / "live"), "shutdown": "1s"},
        **more,
    }


@asynccontextmanager
async def started(folder: Path, port: int = 0, keep_engines: bool = False) -> AsyncIterator[Server]:
    order = ordered(asked(folder, port), port, keep_engines=keep_engines)
    async with asyncio.timeout(QUIET_S), serving(order) as server:
        yield server


def ordered(config: dict[str, Any], port: int = 0, **more: Any) -> LaunchSpec:
    """On any port, unless it is given."""
    made = Config.of(config)
    made = replace(made, gateway=replace(made.gateway, port=port))
    return LaunchSpec(made, "lru", emulate=True, **more)


async def complete(url: str, model: str = MODEL) -> tuple[int, Any, Any]:
    """Status, headers and JSON of one small request."""
    body = {"model": model, "prompt": "x", "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json=body) as answer,
    ):
        return answer.status, answer.headers, await answer.json()


class Gate:
    """Adoption waits here until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        usual = EmulatedManager.adopt

        def adopt(manager: EmulatedManager, engine: Engine) -> bool:
            self.reached.set()
            assert self.go.wait(QUIET_S)
            return usual(manager, engine)

        monkeypatch.setattr(EmulatedManager, "adopt", adopt)


async def left_by_an_earlier_run(folder: Path) -> int:
    """The process of an engine that is there to be adopted."""
    async with started(folder, keep_engines=True) as server:
        assert (await complete(server.url))[0] == 200
    [pid] = left_behind(folder)
    return pid


def runs_of(folder: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "live" / "journal.db")) as db:
        return db.execute("SELECT id, how FROM runs").fetchall()


kept = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
"""Engines that outlive a server are, in these tests, children of one process."""


# One executor


def test_only_one_has_the_lock_and_its_number_is_told(tmp_path: Path) -> None:
    live = tmp_path / "live"
    with locked(live):
        said = rf"live is in use by .*process {os.getpid()} on "
        with pytest.raises(ConfigError, match=said), locked(live):
            raise AssertionError
        with locked(tmp_path / "other"):
            pass
    with locked(live):
        pass


def test_engines_do_not_inherit_the_lock(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs", "test")
    with locked(tmp_path):
        process = processes.spawn("m#1", ["sleep", "600"], {})
    try:
        with locked(tmp_path):
            pass
    finally:
        processes.end("m#1", process, 0.0)


def test_the_system_takes_the_lock_back_from_whoever_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom modelium.live.folder_lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=rf"process {holder.pid} on "), locked(tmp_path):
            raise AssertionError
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_had_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = r"file/lock cannot be written: .*live: \{folder: "
    with pytest.raises(ConfigError, match=said), locked(tmp_path / "file"):
        raise AssertionError


@kept
def test_a_second_server_in_the_folder_hurts_nobody(folder: Path) -> None:
    async def run() -> None:
        async with started(folder) as server:
            assert (await complete(server.url))[0] == 200
            before, engines = runs_of(folder), left_behind(folder)
            (folder / "second.yaml").write_text(json.dumps(asked(folder)))
            second = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "modelium",
                    "run",
                    "--emulate",
                    "--port",
                    "0",
                    "--config",
                    "second.yaml",
                ),
                cwd=folder,
                stderr=asyncio.subprocess.PIPE,
            )
            _, told = await second.communicate()
            [line] = told.decode().splitlines()
            assert second.returncode == 2
            assert f"is in use by a Modelium that runs, process {os.getpid()} on" in line
            assert (runs_of(folder), left_behind(folder)) == (before, engines)
            assert (await complete(server.url))[0] == 200
            assert [line.kind for _, line in server.cluster.decisions] == ["load"]

    asyncio.run(run())
    assert still_there(folder) == []


# Addresses before engines


@kept
@pytest.mark.parametrize("whose", ["gateway", "metrics"])
def test_an_address_that_is_taken_leaves_everything_as_it_was(folder: Path, whose: str) -> None:
    async def run() -> None:
        pid = await left_by_an_earlier_run(folder)
        before = runs_of(folder)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            own = port if whose == "gateway" else 0
            metrics = {"port": port, "enabled": whose == "metrics"}
            order = ordered(asked(folder, metrics=metrics), own)
            with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}"):
                async with serving(order):
                    raise AssertionError
        assert left_behind(folder) == [pid]
        assert runs_of(folder) == before
        async with started(folder) as server:
            [engine] = server.cluster.engines.values()
            assert engine.process is not None
            assert engine.process.pid == pid

    asyncio.run(run())
    assert still_there(folder) == []


@kept
def test_who_calls_while_engines_are_adopted_is_told_to_come_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        await left_by_an_earlier_run(folder)
        gate = Gate(monkeypatch)
        with kept_port() as port:
            url = f"http://127.0.0.1:{port}"
            begun, over = asyncio.Event(), asyncio.Event()

            async def serve() -> None:
                async with started(folder, port):
                    begun.set()
                    await over.wait()

            server = asyncio.create_task(serve())
            await asyncio.to_thread(gate.reached.wait, QUIET_S)
            status, headers, told = await complete(url)
            assert (status, headers["Retry-After"]) == (503, "2")
            assert told["error"]["message"] == "the server is starting"
            # One connection, before and after: it is not closed when the server is ready.
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
                seen = {}
                for path in ("/ready", "/v2/health/ready", "/health/live", "/v2/health/live"):
                    async with http.get(url + path) as answer:
                        seen[path] = answer.status, await answer.json()
                assert seen["/ready"][0] == 503
                assert seen["/v2/health/ready"] == (503, {"error": "the server is starting"})
                assert seen["/health/live"] == (200, {"live": True, "status": "starting"})
                assert seen["/v2/health/live"] == seen["/health/live"]
                gate.go.set()
                await begun.wait()
                async with http.get(f"{url}/ready") as answer:
                    assert answer.status == 200
            assert (await complete(url))[0] == 200
            over.set()
            await server

    asyncio.run(run())
    assert still_there(folder) == []


# Signals


@kept
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_while_it_starts_ends_it_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    async def run() -> None:
        await left_by_an_earlier_run(folder)
        gate = Gate(monkeypatch)

        async def serve() -> None:
            async with started(folder) as server:
                assert server.stop.is_set()
                await server.stop.wait()

        server = asyncio.create_task(serve())
        await asyncio.to_thread(gate.reached.wait, QUIET_S)
        os.kill(os.getpid(), number)
        gate.go.set()
        await server

    asyncio.run(run())
    assert still_there(folder) == []
    assert [how for _, how in runs_of(folder)] == ["engines kept", "stopped"]


def test_nohup_stays_nohup() -> None:
    async def run() -> None:
        signals = Signals()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        assert not signals.stop.is_set()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(run())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def heed_sighup() -> None:
    """As usual: where the tests run under nohup they ignore it, and so would the server."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def run_by_hand(
    folder: Path, port: int, **how: Any
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """`modelium run` in a session of its own, and a call that sends it a request."""
    (folder / "modelium.yaml").write_text(json.dumps(asked(folder, port)))
    command = [sys.executable, "-m", "modelium", "run", "--emulate"]
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            start_new_session=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stderr": errors,
                "preexec_fn": heed_sighup,
                **how,
            },
        )

    def ask() -> None:
        async def until_served() -> None:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    try:
                        status, _, told = await complete(f"http://127.0.0.1:{port}")
                    except aiohttp.ClientConnectionError:
                        assert process.poll() is None, (folder / "stderr").read_text()
                    else:
                        if status == 200:
                            return
                        assert status == 503, told
                    await asyncio.sleep(0.05)

        asyncio.run(until_served())

    with process:
        try:
            yield process, ask
        finally:
            process.kill()


def test_a_terminal_that_is_closed_ends_it_in_order(folder: Path) -> None:
    """As SIGTERM would: the live view has nowhere to be drawn, engines are ended all the same."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    drawn, close = threading.Event(), threading.Event()

    def take_the_terminal() -> None:
        heed_sighup()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    def show() -> None:
        """What a terminal does, until it is closed."""
        shown = b""
        while not close.is_set():
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65536)
            if MODEL.encode() in shown:
                drawn.set()
        os.close(ours)

    terminal = threading.Thread(target=show)
    ends: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    ends["env"] = {**os.environ, "TERM": "xterm"}
    with kept_port() as port, run_by_hand(folder, port, preexec_fn=take_the_terminal, **ends) as at:
        process, ask = at
        os.close(theirs)
        terminal.start()
        ask()
        assert drawn.wait(WITHIN_S), "the live view"
        assert len(left_behind(folder)) == 1, "its engine"
        close.set()
        assert process.wait(WITHIN_S) == 0
        terminal.join()
    assert still_there(folder) == []
    assert [how for _, how in runs_of(folder)] == ["stopped"]


def test_sighup_reloads_without_a_terminal_and_a_lost_reader_ends_nothing(
    folder: Path,
) -> None:
    with (
        kept_port() as port,
        run_by_hand(folder, port, stdout=subprocess.PIPE) as (process, ask),
    ):
        ask()
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None
        for line in process.stdout:  # until it has read its configuration again
            if b"reload" in line:
                break
        assert b"nothing has changed" in line
        ask()
        process.stdout.close()
        with pytest.raises(Exception, match="404"):
            operate(port, "nobody", "load")
        operate(port, MODEL, "unload")  # it would be told of
        ask()
        process.send_signal(signal.SIGQUIT)
        assert process.wait(WITHIN_S) == 0
    assert still_there(folder) == []
    told = (folder / "stderr").read_text()
    assert "Nobody reads the standard output any more" in told
    assert "Traceback" not in told


def operate(port: int, model: str, verb: str) -> None:
    from modelium.client.client import Client

    Client(f"http://127.0.0.1:{port}").act(model, verb)
