"""A real Ray Serve: models come and go, fail, die and are found again; nothing is left."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from modelium.managers.engine import Engine, EngineError, StartError
from modelium.managers.ray.manager import RayManager
from tests.live import tiny
from tests.live.running import until
from tests.managers.ray_house import (
    DEADLINE_S,
    double,
    manager,
    needs_ray,
    order,
    post,
    processes_of,
)
from tests.managers.vllm_house import client, completion, running, stream

pytestmark = [pytest.mark.engines, needs_ray()]

STALL_S = 2.0
CONTEXT, TOKENS = 10_000_000, 9_000_000
"""Asked for so many, the fastest machine goes on for an hour."""


@dataclass
class House:
    """One Ray with a language model and a class of the user's."""

    folder: Path
    manager: RayManager
    llama: Engine
    double: Engine
    heard: list[tuple[str, float]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("ray")
    made, heard = manager(folder / "logs", stall_s=STALL_S), list[tuple[str, float]]()
    path = tiny.llama(folder / "llama", context=CONTEXT)
    llama = order("llama#1", path, settings={"args": {}}, device=2)
    try:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(made.start, llama, lambda *told: heard.append(told))
            second = pool.submit(made.start, order("double#1", double(folder / "double")))
            engines = first.result(), second.result()
        yield House(folder, made, *engines, heard)
        for engine in engines:
            made.stop(engine, 0.0)
    finally:
        made.close()
        left = processes_of(folder / "logs")
        for one in left:
            one.kill()
        assert left == []


def replica(engine: Engine) -> psutil.Process:
    return psutil.Process(engine.extra["pids"][0])


def test_a_start_tells_its_stages_and_its_engine_is_plain_data(house: House) -> None:
    told = list(dict.fromkeys(stage for stage, _ in house.heard))
    assert told == list(house.llama.stages) == ["ray", "weights", "canary"]
    assert Engine.from_dict(json.loads(json.dumps(house.llama.as_dict()))) == house.llama
    assert house.manager.trouble(house.llama) == house.manager.trouble(house.double) == ""


def test_each_has_a_process_of_its_own_on_the_gpu_it_was_given(house: House) -> None:
    status, told = post(house.double, "/", {"x": [1, 2]})
    assert (status, told["y"], told["gpu"]) == (200, [2, 4], "0")
    assert [told["pid"]] == house.double.extra["pids"] != house.llama.extra["pids"]
    assert replica(house.llama).environ()["CUDA_VISIBLE_DEVICES"] == "2"


def test_it_listens_on_the_loopback_only(house: House) -> None:
    addresses = {
        listening.laddr.ip
        for one in processes_of(house.folder / "logs")
        for listening in one.net_connections("tcp")
        if listening.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_language_model_speaks_openais_api(house: House) -> None:
    said = completion(house.llama, tokens=12)
    with client(house.llama) as ask:
        chunks = ask.completions.create(
            model="llama", prompt="Once", max_tokens=12, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == said
        messages = [{"role": "user", "content": "Hello"}]
        chat = ask.chat.completions.create(
            model="llama",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=4,
            temperature=0,
        )
        assert chat.usage is not None
        assert chat.usage.prompt_tokens == len("user: Hello\nassistant: ")
        assert chat.choices[0].message.role == "assistant"


def test_the_answer_is_that_of_the_weights(house: House) -> None:
    other = house.manager.load_model("other", tiny.llama(house.folder / "other", seed=1))
    assert completion(other) != completion(house.llama) == completion(house.llama)
    assert house.manager.get_model_endpoint("other") == other.url
    with pytest.raises(EngineError, match="Did you mean 'other'"):
        house.manager.unload_model("othre")
    with pytest.raises(StartError, match="loaded already"):
        house.manager.load_model("other", house.folder / "other")
    pids = other.extra["pids"]
    house.manager.unload_model("other")
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert psutil.wait_procs(left, timeout=DEADLINE_S)[1] == []


def test_a_stream_is_whole_and_counts_its_tokens(house: House) -> None:
    chunks = list(stream(house.llama, 64))
    assert chunks[-1].usage.completion_tokens == 64
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] == ["length"]


def test_who_goes_away_frees_the_model(house: House) -> None:
    chunks = stream(house.llama, TOKENS)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    until(lambda: not house.manager._health(house.llama, DEADLINE_S)["busy"])
    work = house.manager._health(house.llama, DEADLINE_S)["work"]
    assert house.manager._health(house.llama, DEADLINE_S)["work"] == work


def test_text_ends_before_a_stop_string(house: House) -> None:
    body = {"model": "llama", "prompt": "Once", "max_tokens": 40, "temperature": 0}
    whole = post(house.llama, "/v1/completions", body)[1]["choices"][0]["text"]
    stop = whole[5:7]
    told = post(house.llama, "/v1/completions", {**body, "stop": stop})[1]
    assert told["choices"][0]["text"] == whole.partition(stop)[0]
    assert told["choices"][0]["finish_reason"] == "stop"
    assert told["usage"]["completion_tokens"] < 40


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("/v1/completions", "{", 400, "no JSON"),
        ("/v1/completions", {"prompt": 3}, 400, "prompt must be one text"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt is empty"),
        ("/v1/completions", {"prompt": [99999]}, 400, "not in 0 to 319"),
        ("/v1/completions", {"prompt": "a", "max_tokens": CONTEXT}, 400, f"{CONTEXT} tokens"),
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "n is not known"),
        ("/v1/chat/completions", {"messages": []}, 400, "at least one"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "content"),
        ("/v1/embeddings", {"input": "a"}, 404, "not served here"),
    ],
)
def test_bad_requests_are_refused_in_words(
    house: House, path: str, body: object, status: int, why: str
) -> None:
    got, told = post(house.llama, path, body)
    assert (got, why in told["error"]["message"]) == (status, True), told


def test_a_busy_class_is_in_no_trouble_and_others_go_on(house: House) -> None:
    with ThreadPoolExecutor() as pool:
        go = house.folder / "double" / "go"
        slow = pool.submit(post, house.double, "/", {"x": [1], "wait": go.name})
        try:
            until((house.folder / "double" / "waits").exists)
            assert house.manager.trouble(house.double, DEADLINE_S) == ""
            assert post(house.double, "/", {"x": [2]})[1]["y"] == [4]
            assert not slow.done()
        finally:
            go.touch()
        assert slow.result()[1]["y"] == [2]


def test_one_that_makes_nothing_is_in_trouble_after_a_while(house: House) -> None:
    chunks = stream(house.llama, TOKENS)
    next(chunks)
    assert house.manager.trouble(house.llama, DEADLINE_S) == ""
    replica(house.llama).suspend()
    try:
        assert "no answer" in house.manager.trouble(house.llama, 2.0)
    finally:
        replica(house.llama).resume()
    chunks.close()  # type: ignore[attr-defined]
    until(lambda: not house.manager.trouble(house.llama))


@pytest.mark.parametrize(
    ("mode", "why", "memory"),
    [
        ("raise", "broken: these are no weights", False),
        ("memory", "broken: CUDA out of memory", True),
    ],
)
def test_a_constructor_that_raises_says_why(
    house: House, mode: str, why: str, memory: bool
) -> None:
    with pytest.raises(StartError) as caught:
        house.manager.start(order("broken#1", double(house.folder / "broken"), mode))
    assert str(caught.value).startswith(why)
    assert caught.value.out_of_memory is memory
    assert "model.py" in caught.value.log, "the remote traceback"
    assert not list(house.manager._ray.replicas(house.manager._app("broken#1")))
    assert set(house.manager._ray.states(30.0)) == house.manager._ray.members


def test_weights_that_are_cut_say_so(house: House) -> None:
    path = tiny.llama(house.folder / "cut")
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(StartError, match=r"cut: .*[Ss]afetensor"):
        house.manager.start(order("cut#1", path, settings={"args": {}}))


@pytest.mark.parametrize("way", ["deadline", "given up"])
def test_a_constructor_that_hangs_is_ended(house: House, way: str) -> None:
    path = double(house.folder / f"hangs {way}")
    cancelled = threading.Event()
    asked = order("hangs", path, "hang", deadline_s=15.0 if way == "deadline" else 200.0)
    asked = replace(asked, cancelled=cancelled)
    with ThreadPoolExecutor() as pool:
        start = pool.submit(house.manager.start, asked)
        until(lambda: (path / "began").exists() or start.done())
        if way == "given up":
            cancelled.set()
        with pytest.raises(StartError, match=r"not ready after|given up"):
            start.result(DEADLINE_S)
    assert not house.manager._ray.replicas(house.manager._app("hangs"))


def test_wrong_orders_are_refused_before_anything_starts(house: House, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no setting 'dytpe'\. Did you mean 'dtype'"):
        house.manager.load_model("x", tmp_path, dytpe="float16")
    with pytest.raises(StartError, match="its files are not at"):
        house.manager.load_model("x", tmp_path / "nowhere")
    for move in (house.manager.wake, lambda engine: house.manager.sleep(engine, 1)):
        with pytest.raises(EngineError, match="sleep"):
            move(house.double)


def test_a_replica_that_is_killed_comes_back_and_its_requests_wait(house: House) -> None:
    killed = replica(house.double)
    with ThreadPoolExecutor() as pool:
        killed.kill()
        killed.wait(DEADLINE_S)
        waits = pool.submit(post, house.double, "/", {"x": [4]})
        assert house.manager.trouble(house.double, 0.2) == "", "Ray has time to start another"
        until(lambda: not house.manager.trouble(house.double, 0.5) and waits.done())
        assert waits.result()[1]["y"] == [8]
    assert replica(house.double) != killed


def test_a_replica_that_does_not_come_back_is_trouble(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = double(house.folder / "once")
    engine = house.manager.start(order("once#1", path))
    (path / "model.py").write_text("raise ValueError('its code has changed')")
    monkeypatch.setattr("modelium.managers.ray.manager.RESTART_S", 3.0)
    replica(engine).kill()
    until(lambda: "did not come back" in house.manager.trouble(engine, 0.5))
    house.manager.stop(engine, 0.0)
    assert set(house.manager._ray.states(30.0)) == house.manager._ray.members


def test_stopping_does_not_wait_for_streams_longer_than_its_grace(house: House) -> None:
    path = tiny.llama(house.folder / "long", context=CONTEXT)
    engine = house.manager.start(order("long#1", path, settings={"args": {}}))
    chunks = stream(engine, TOKENS)
    next(chunks)
    worker = replica(engine)
    house.manager.stop(engine, 0.0)
    assert running([worker]) == []
    house.manager.stop(engine, 0.0)


def test_a_lost_driver_is_started_again(house: House) -> None:
    driver = house.manager._ray._driver
    assert driver is not None
    psutil.Process(driver._process.pid).kill()
    until(lambda: not driver.runs())
    assert house.manager._ray.members == set(house.manager._ray.states(60.0))
