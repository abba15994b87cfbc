"""A real vLLM from its first token to its end: it serves, sleeps, hangs, is adopted, stops."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modelium.managers.engine import Engine, EngineError
from modelium.managers.vllm.manager import VLLMManager
from tests.live import tiny
from tests.managers.vllm_house import (
    completion,
    core,
    free_port,
    manager,
    needs_vllm,
    order,
    running,
    shared_memory,
    stream,
    tree,
)

pytestmark = [pytest.mark.engines, needs_vllm()]

STALL_S = 3.0
CONTEXT = 32768
ENDLESS = 32000
"""Tokens that nobody waits for: however fast the machine, what happens next happens meanwhile."""


@dataclass
class Pair:
    """Two servers of one manager, started at the same time, and what they told meanwhile."""

    folder: Path
    manager: VLLMManager
    a: Engine
    b: Engine
    heard: list[tuple[str, float]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("vllm")
    heard = list[tuple[str, float]]()
    made = manager(folder / "logs", stall_s=STALL_S)
    orders = [
        order(
            name,
            tiny.llama(folder / name, seed=seed, context=CONTEXT),
            devices=(seed,),
            settings={"max_model_len": CONTEXT},
        )
        for seed, name in enumerate("ab")
    ]
    with ThreadPoolExecutor() as pool:
        a = pool.submit(made.start, orders[0], lambda *told: heard.append(told))
        b = pool.submit(made.start, orders[1])
        engines = a.result(), b.result()
    yield Pair(folder, made, *engines, heard)
    for engine in engines:
        made.stop(engine, 0.0)


def test_two_start_at_once_and_each_is_its_own(pair: Pair) -> None:
    assert pair.a.url != pair.b.url
    assert {one.cwd() for one in tree(pair.a)}.isdisjoint(one.cwd() for one in tree(pair.b))
    assert completion(pair.a) == completion(pair.a)
    assert completion(pair.a) != completion(pair.b)
    assert pair.manager.trouble(pair.a) == pair.manager.trouble(pair.b) == ""
    assert Engine.from_dict(json.loads(json.dumps(pair.a.as_dict()))) == pair.a


def test_a_start_tells_its_stages_and_times_them(pair: Pair) -> None:
    told = list(dict.fromkeys(stage for stage, _ in pair.heard))
    assert told == [s for s in ("process", "weights", "profile", "server", "canary") if s in told]
    assert {"process", "weights", "canary"} <= set(told)
    assert list(pair.a.stages) == told
    assert pair.a.stages["process"] == max(pair.a.stages.values())


def test_a_stream_is_whole(pair: Pair) -> None:
    chunks = list(stream(pair.a, 64))
    assert chunks[-1].usage.completion_tokens == 64
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons.count("length") == 1


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_and_wakes_as_it_was(pair: Pair, level: int) -> None:
    said = completion(pair.a)
    pair.manager.sleep(pair.a, level)
    assert pair.manager.trouble(pair.a) == "", "asleep is as it should be"
    pair.manager.wake(pair.a)
    assert completion(pair.a) == said


def test_after_level_2_the_weights_are_read_again(pair: Pair) -> None:
    weights = pair.folder / "a" / "model.safetensors"
    kept = shutil.copy(weights, pair.folder / "kept")
    said = completion(pair.a)
    pair.manager.sleep(pair.a, 2)
    shutil.copy(pair.folder / "b" / "model.safetensors", weights)
    pair.manager.wake(pair.a)
    assert completion(pair.a) == completion(pair.b)
    pair.manager.sleep(pair.a, 2)
    shutil.copy(kept, weights)
    pair.manager.wake(pair.a)
    assert completion(pair.a) == said


def test_a_busy_one_is_in_trouble_only_if_it_takes_no_step(pair: Pair) -> None:
    chunks = stream(pair.a, 2000)
    next(chunks)
    assert pair.manager.trouble(pair.a, 20.0) == ""
    core(pair.a).suspend()
    try:
        assert until_trouble(pair, pair.a) >= STALL_S
    finally:
        core(pair.a).resume()
    assert pair.manager.trouble(pair.a, 20.0) == ""
    assert list(chunks)[-1].usage.completion_tokens == 2000, "it went on where it was"


def test_an_idle_one_is_in_trouble_if_it_answers_nothing(pair: Pair) -> None:
    core(pair.b).suspend()
    try:
        with pytest.raises(EngineError, match="gave no answer in 1"):
            pair.manager.sleep(pair.b, 1, deadline_s=1.0)
        assert until_trouble(pair, pair.b) >= STALL_S
    finally:
        core(pair.b).resume()
    pair.manager.wake(pair.b)
    assert pair.manager.trouble(pair.b, 20.0) == ""


def until_trouble(pair: Pair, engine: Engine) -> float:
    """Look again and again, as an executor does; seconds until a hung engine is found."""
    begun_s = time.monotonic()
    while not (why := pair.manager.trouble(engine, 0.5)):
        assert time.monotonic() - begun_s < 60.0
    assert "no step for" in why
    return time.monotonic() - begun_s


ADOPT = """
import json, sys
from pathlib import Path
from modelium.managers.engine import Engine
from modelium.managers.vllm.manager import VLLMManager
folder, port, *texts = sys.argv[1:]
manager = VLLMManager(folder=Path(folder), base_port=int(port))
engines = [Engine.from_dict(json.loads(text)) for text in texts]
print(json.dumps([manager.adopt(engine) for engine in engines]))
print(json.dumps(manager.sweep(engines)))
print(json.dumps(manager.sweep([])))
manager.stop(engines[1])
print(json.dumps([manager.trouble(engine) for engine in engines]))
"""


def test_another_process_adopts_what_runs(pair: Pair) -> None:
    """The other one is a later executor; it sweeps nothing that it adopted, and can end it."""
    gone = tree(pair.b)
    texts = [json.dumps(engine.as_dict()) for engine in (pair.a, pair.b)]
    command = [sys.executable, "-c", ADOPT, str(pair.folder / "logs"), str(free_port()), *texts]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    adopted, swept, swept_again, trouble = map(json.loads, said.stdout.splitlines())
    assert adopted == [True, True]
    assert swept == swept_again == []
    assert trouble == ["", "its process has ended"]
    assert running(gone) == []
    assert completion(pair.a)


def test_what_is_not_the_same_is_not_adopted(pair: Pair) -> None:
    assert pair.a.process is not None
    other = replace(pair.a.process, start_ticks=pair.a.process.start_ticks - 6000)
    assert not pair.manager.adopt(replace(pair.a, process=other))
    assert not pair.manager.adopt(replace(pair.a, name="another model"))
    assert not pair.manager.adopt(replace(pair.a, url=f"http://127.0.0.1:{free_port()}"))
    assert not pair.manager.adopt(pair.b), "it was stopped"


def test_it_stops_with_a_stream_in_flight_and_leaves_nothing(pair: Pair) -> None:
    """Left alone, vLLM hangs on SIGTERM for as long as a client listens."""
    gone, scratch = tree(pair.a), Path(tree(pair.a)[0].cwd())
    blocks = shared_memory(gone)
    assert blocks
    assert any(scratch.iterdir()), "its temporary files are there"
    chunks = stream(pair.a, ENDLESS)
    next(chunks)
    begun_s = time.monotonic()
    pair.manager.stop(pair.a, 60.0)
    assert time.monotonic() - begun_s < 30.0, "it did not wait for the grace to pass"
    rest = list(chunks)
    reasons = [choice.finish_reason for chunk in rest for choice in chunk.choices]
    assert reasons[-1] == "abort"
    assert running(gone) == []
    assert not scratch.exists()
    assert [block for block in blocks if block.exists()] == []
    assert pair.manager.trouble(pair.a) == "its process has ended"
    pair.manager.stop(pair.a)  # no matter that it is gone
