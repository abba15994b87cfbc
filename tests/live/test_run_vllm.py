"""`modelium run` with real vLLM servers: two models take turns in memory for one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIError, OpenAI

from modelium.live.records.export import read_run
from tests.live import tiny
from tests.live.running import running, still_there, sweep, until
from tests.managers.vllm_house import needs_vllm, shared_memory

pytestmark = [pytest.mark.engines, needs_vllm()]


def config(folder: Path) -> dict[str, Any]:
    """One pretended GPU with room for one model."""
    one = {"runtime": "vllm", "weights": "1MiB", "kv": "64MiB", "overhead": "2GiB"}
    return {
        "cluster": {"gpus": [{"kind": "h100-80g", "memory": "3GiB"}], "host_memory": "4GiB"},
        "models": {name: {**one, "path": str(folder / name)} for name in "ab"},
        "vllm": {
            "environment": str(Path(".engines/vllm").absolute()),
            "sleep_mode": True,  # it is put to sleep by hand, under a policy that never does
            "default_settings": {"max_model_len": 512, "max_num_seqs": 8},
            "flags": ["--enforce-eager"],
            "env": {"OMP_NUM_THREADS": "1"},
        },
    }


def blocks_of(pid: int) -> set[Path]:
    """Shared memory of a server and its processes."""
    leader = psutil.Process(pid)
    return shared_memory([leader, *leader.children(recursive=True)])


def test_processes_come_and_go_and_streams_are_whole(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "a", seed=1)
    tiny.llama(tmp_path / "b", seed=2)
    blocks: set[Path] = set()
    try:
        with running(tmp_path / "run", config(tmp_path), "--policy", "lru") as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

            def ask(model: str, *, stream: bool) -> str:
                how: dict[str, Any] = {
                    "model": model, "prompt": "Once", "max_tokens": 12, "temperature": 0,
                    "extra_body": {"ignore_eos": True},
                }  # fmt: skip
                if not stream:
                    answer = client.completions.create(**how)
                    assert answer.usage is not None
                    assert answer.usage.completion_tokens == 12
                    return answer.choices[0].text
                pieces = list(client.completions.create(**how, stream=True))
                assert pieces[-1].choices[0].finish_reason == "length"
                return "".join(piece.choices[0].text for piece in pieces)

            first = ask("a", stream=False)
            [before] = server.client.status()["gpus"][0]["instances"]
            blocks |= blocks_of(before["pid"])
            with ThreadPoolExecutor(8) as pool:
                texts = list(pool.map(lambda k: ask("a", stream=k % 2 == 0), range(8)))
            assert set(texts) == {first}
            server.client.act("a", "sleep")
            assert server.client.models()[0]["status"] == "asleep"
            server.client.act("a", "wake")
            assert ask("a", stream=True) == first
            ask("b", stream=True)
            [now] = server.client.status()["gpus"][0]["instances"]
            blocks |= blocks_of(now["pid"])
            assert not psutil.pid_exists(before["pid"])
            assert [one["status"] for one in server.client.models()] == ["unloaded", "ready"]
            kinds = [line["kind"] for line in server.client.decisions()][::-1]
            assert kinds == ["load", "sleep", "wake", "unload", "load"]
            load = server.client.decisions("b")[0]
            assert {"process", "weights", "canary"} <= set(load["stages"])  # from its own log
            assert server.end() == 0
        assert still_there(tmp_path) == []
        assert blocks
        assert not [block for block in blocks if block.exists()]
    finally:
        sweep(tmp_path)


def core_of(pid: int) -> psutil.Process:
    """The process that computes; a server answers on, with errors, when it has died."""
    leader = psutil.Process(pid)
    named = [one for one in leader.children(recursive=True) if "EngineCore" in one.cmdline()[0]]
    return named[0]


def test_a_core_that_dies_is_a_failure_only_to_who_has_read_of_its_answer(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "a")
    given = config(tmp_path)
    given["models"].pop("b")
    try:
        with running(tmp_path / "run", given) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

            def ask() -> Any:
                return client.completions.create(
                    model="a", prompt="Once", max_tokens=500, stream=True, temperature=0,
                    extra_body={"ignore_eos": True},
                )  # fmt: skip

            begun = ask()
            next(begun)
            [engine] = server.client.status()["gpus"][0]["instances"]
            core = core_of(engine["pid"])
            core.suspend()
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(lambda: list(ask()))
                until(lambda: server.client.status()["running"] == 2)
                core.kill()
                with pytest.raises(APIError, match="broke in the middle of the answer") as broken:
                    list(begun)
                assert broken.value.code == "engine_lost"
                assert waiting.result()[-1].choices[0].finish_reason == "length"
            assert server.end() == 0
        run = read_run(tmp_path / "run" / ".modelium" / "journal.db")
        outcomes = dict(
            zip(*(run.requests[name].to_pylist() for name in ("retries", "outcome")), strict=True)
        )
        assert outcomes == {0: "failed", 1: "completed"}
        assert run.requests["slo_met"].to_pylist()[0] is False
    finally:
        sweep(tmp_path)
