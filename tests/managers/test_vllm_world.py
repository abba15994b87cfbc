"""A real vLLM among other programs: ports they take, executors that die, the original calls."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from modelium.managers import VLLMManager
from modelium.managers.engine import Engine, EngineError, StartError
from tests.live import tiny
from tests.managers.vllm_house import (
    DEADLINE_S,
    ONE_THREAD,
    SMALL,
    completion,
    core,
    free_port,
    manager,
    needs_vllm,
    order,
    processes_of,
    running,
    shared_memory,
    stream,
    tree,
)

pytestmark = [pytest.mark.engines, needs_vllm()]

TOKENS = 1500


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """After each test: no process of an engine below its folder, even for the next test."""
    yield
    left = processes_of(tmp_path)
    for one in left:
        one.kill()
    assert left == []


@dataclass
class Robbed:
    """A server whose port was taken by another program while it started."""

    manager: VLLMManager
    engine: Engine
    taken: int


@pytest.fixture(scope="module")
def robbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Robbed]:
    folder, base = tmp_path_factory.mktemp("vllm"), free_port()
    made = VLLMManager(folder=folder / "logs", env=ONE_THREAD, base_port=base)
    thieves: list[socket.socket] = []

    def steal(stage: str, _: float) -> None:
        """Between the manager's look and vLLM's bind."""
        if stage == "process" and not thieves:
            thieves.append(socket.create_server(("127.0.0.1", base)))

    engine = made.start(order("m", tiny.llama(folder / "m")), steal)
    thieves[0].close()
    yield Robbed(made, engine, base)
    made.stop(engine, 0.0)
    assert processes_of(folder) == []


def test_a_start_whose_port_is_taken_goes_on_with_another(robbed: Robbed) -> None:
    assert robbed.engine.url != f"http://127.0.0.1:{robbed.taken}"
    assert completion(robbed.engine)


def test_a_server_whose_core_has_died_is_in_trouble_and_leaves_nothing(robbed: Robbed) -> None:
    family = tree(robbed.engine)
    blocks = shared_memory(family)
    core(robbed.engine).kill()
    assert robbed.manager.trouble(robbed.engine, 30.0)
    robbed.manager.stop(robbed.engine)
    assert running(family) == []
    assert [block for block in blocks if block.exists()] == []


EXECUTOR = """
import sys
from pathlib import Path
from modelium.managers.vllm.manager import VLLMManager
folder, path, port = sys.argv[1:]
manager = VLLMManager(folder=Path(folder), base_port=int(port), env={"OMP_NUM_THREADS": "1"})
settings = dict(enforce_eager=True, max_model_len=512, kv_cache_memory_bytes="64M")
engine = manager.load_model("m", path, gpu_id=0, **settings)
print(engine.process.pid, manager.get_model_endpoint("m"), flush=True)
sys.stdin.read()
"""


def test_orphans_of_a_killed_executor_and_a_killed_server_are_swept(tmp_path: Path) -> None:
    folder, path = tmp_path / "logs", tiny.llama(tmp_path / "m")
    command = [sys.executable, "-c", EXECUTOR, str(folder), str(path), str(free_port())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as executor:
        assert executor.stdout is not None
        pid, endpoint = executor.stdout.readline().split()
        assert endpoint.startswith("http://127.0.0.1:")
        executor.kill()
    server = psutil.Process(int(pid))
    family = [server, *server.children(recursive=True)]
    assert len(family) >= 3
    assert running(family) == family, "engines outlive their executor"
    os.kill(server.pid, signal.SIGKILL)
    blocks = shared_memory(running(family))
    assert blocks, "vLLM's own processes outlive their server"
    stranger, later = manager(tmp_path / "others"), manager(folder)
    assert stranger.sweep([]) == []
    assert later.sweep([]) == ["vLLM of m"]
    assert running(family) == []
    assert [block for block in blocks if block.exists()] == []
    assert later.sweep([]) == []


def test_the_calls_of_the_original_project(tmp_path: Path) -> None:
    made, path = manager(tmp_path / "logs"), tiny.llama(tmp_path / "m")
    engine = made.load_model("m", str(path), gpu_id=0, **SMALL)
    assert made.get_model_endpoint("m") == engine.url
    with pytest.raises(StartError, match="m is loaded already"):
        made.load_model("m", path)
    with pytest.raises(EngineError, match=r"mm is not loaded. Did you mean 'm'\?"):
        made.unload_model("mm")
    family = tree(engine)
    with ThreadPoolExecutor() as pool:
        chunks = stream(engine, TOKENS)
        first = next(chunks)
        under_way = pool.submit(lambda: [first, *chunks])
        made.unload_model("m", graceful=True)
        answer = under_way.result(DEADLINE_S)
        assert answer[-1].usage.completion_tokens == TOKENS, "its request was answered first"
    assert running(family) == []
    with pytest.raises(EngineError, match="m is not loaded"):
        made.get_model_endpoint("m")
