"""Real vLLM servers for tests: how they are started, spoken to and counted."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from modelium.errors import ConfigError
from modelium.managers import environment
from modelium.managers.engine import Engine, Order
from modelium.managers.process import MARK, Processes
from modelium.managers.vllm.manager import VLLMManager

SMALL = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": "64M",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Threads that spin for each other make two servers on two cores crawl."""
DEADLINE_S = 600.0


def needs_vllm() -> pytest.MarkDecorator:
    """Skips, saying how to get it, where vLLM is not installed."""
    try:
        environment.find("vllm", "vllm")
    except ConfigError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="vLLM is here")


def manager(folder: Path, **more: Any) -> VLLMManager:
    """A manager whose engines belong to nobody else."""
    return VLLMManager(folder=folder, env=ONE_THREAD, base_port=free_port(), **more)


def order(instance: str, path: Path, **more: Any) -> Order:
    """A small server of a tiny model; it is called as its instance."""
    settings = {**SMALL, **more.pop("settings", {})}
    return Order(
        instance, instance, path, settings=settings, deadline_s=DEADLINE_S, can_sleep=True, **more
    )


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes of all engines whose models or logs are below `folder`, without zombies."""
    places = [str(folder)]
    places += [str(Processes(logs, "vllm").scratch("x").parent) for logs in folder.glob("logs*")]
    found = []
    for one in psutil.process_iter():
        try:
            if one.status() == psutil.STATUS_ZOMBIE:
                continue
            words = [*one.cmdline(), one.cwd(), one.environ().get(MARK, "")]
        except (psutil.Error, OSError):
            continue
        if any(place in word for place in places for word in words):
            found.append(one)
    return found


def end_all(processes: Processes) -> list[str]:
    """End what of a manager's runs still, which is what tests that failed have left; its names."""
    left = list(processes.left([]))
    for name in left:
        processes.end(name, None, 0.0)
    return left


def tree(engine: Engine) -> list[psutil.Process]:
    """Its processes: the server, the engine's core, its workers."""
    assert engine.process is not None
    leader = psutil.Process(engine.process.pid)
    return [leader, *leader.children(recursive=True)]


def core(engine: Engine) -> psutil.Process:
    """The process that schedules: without it the server still listens."""
    return next(one for one in tree(engine) if "EngineCore" in " ".join(one.cmdline()))


def running(some: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended."""
    return [one for one in some if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def client(engine: Engine) -> openai.OpenAI:
    """The client that users have; close it."""
    return openai.OpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S
    )


def completion(engine: Engine, prompt: str = "Once", tokens: int = 12) -> str:
    """What the model says, always the same for the same weights."""
    with client(engine) as ask:
        answer = ask.completions.create(
            model=engine.name, prompt=prompt, max_tokens=tokens, temperature=0
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= tokens
    return answer.choices[0].text


def stream(engine: Engine, tokens: int) -> Iterator[Any]:
    """Chunks of a stream of exactly so many tokens."""
    with (
        client(engine) as ask,
        ask.completions.create(
            model=engine.name,
            prompt="Once",
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ) as chunks,
    ):
        yield from chunks


def shared_memory(some: list[psutil.Process]) -> set[Path]:
    """Blocks of shared memory that these processes have mapped."""
    maps = [Path(f"/proc/{one.pid}/maps").read_text() for one in some]
    return {Path(name) for text in maps for name in re.findall(r"/dev/shm/psm_\w+", text)}
