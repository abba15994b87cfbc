"""EmulatedManager: real processes that come up in their stages, sleep, break, and go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelium.managers import EmulatedManager
from modelium.managers.engine import Engine, EngineError, Order, StartError
from tests.live.harness import NEVER_S
from tests.live.running import until
from tests.managers.emulation.conftest import AT_ONCE, INFER, STEADY, TOKENS, WITHIN_S, Client

TICK_S = 0.02
"""The system tells when a process began by ticks of a hundredth of a second."""


class House:
    """A manager, and the engines that it started in this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manager = self.another()
        self.engines: list[Engine] = []

    def another(self) -> EmulatedManager:
        """A later self of the manager."""
        return EmulatedManager(folder=self.folder, faults=True)

    def start(self, settings: dict[str, Any], name: str = "m", **order: Any) -> Engine:
        order = {"instance": f"{name}#{len(self.engines) + 1}", "model": name, **order}
        engine = self.manager.start(Order(settings=settings, **order))
        self.engines.append(engine)
        return engine


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    for engine in house.engines:
        house.manager.stop(engine, grace_s=0.0)
    assert processes(tmp_path) == []


def processes(folder: Path) -> list[int]:
    """What runs with a specification in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process.pid)
    return found


def took_s(engine: Engine, stage: str) -> float:
    """Seconds of a stage by the engine's own log."""
    found = re.search(rf"^{stage} took (\S+) s$", Path(engine.log).read_text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def request(**body: Any) -> bytes:
    """A request for a completion as it goes over the line."""
    content = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return head % len(content) + content


def pid(engine: Engine) -> int:
    assert engine.process is not None
    return engine.process.pid


# Start


def test_stages_take_their_time_at_a_speed(house: House) -> None:
    heard: list[tuple[str, float]] = []
    stages, speed = {"process": 3e4, "weights": 4e4, "graphs": 2e4}, 1e5
    settings = {**AT_ONCE, "stages": stages, "speed": speed}
    order = Order("m#1", "m", devices=(1, 2), settings=settings)
    engine = house.manager.start(order, lambda stage, share: heard.append((stage, share)))
    house.engines.append(engine)
    assert list(engine.stages) == list(stages)
    assert sum(engine.stages.values()) > sum(stages.values()) / speed - TICK_S
    for stage, seconds in stages.items():
        assert took_s(engine, stage) > seconds / speed - TICK_S
        shares = [share for name, share in heard if name == stage]
        assert shares[0] == 0
        assert shares == sorted(shares)
        assert len(shares) == 20
    assert (engine.instance, engine.name, engine.api) == ("m#1", "m", "openai")
    assert (engine.runtime, engine.devices) == ("emulated", (1, 2))
    assert "ready on" in Path(engine.log).read_text()


def test_only_the_first_load_of_a_model_compiles(house: House) -> None:
    stages = {"compile": 0.1, "first_compile": 1.0}
    settings = {**AT_ONCE, "speed": 1, "stages": stages}
    first, second, other = (house.start(settings, name) for name in "mmn")
    told = [json.loads(Path(e.log).with_suffix(".json").read_text()) for e in (first, second)]
    assert [one["stages"]["compile"] for one in told] == [1.0, 0.1]
    for engine in (first, other):
        assert took_s(engine, "compile") > 1.0 - TICK_S


def test_the_default_is_a_language_model_on_a_large_gpu(house: House) -> None:
    engine = house.start({"speed": 100})
    assert list(engine.stages) == ["process", "weights", "compile", "graphs"]
    assert sum(engine.stages.values()) >= 0.2
    started = time.monotonic()
    Client(engine).post("/v1/completions", prompt="a", max_tokens=100)
    assert time.monotonic() - started > 99 * 0.0068 / 100


def test_names_with_strange_letters_are_served(house: House) -> None:
    engine = house.start(INFER, "org/models é#1")
    client = Client(engine)
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
    status, _ = client.post("/v2/models/org/models%20%C3%A9%231/infer", inputs=[tensor])
    assert status == 200
    assert "org/models é#1" in client.ask("GET", "/metrics")[1]


@pytest.mark.parametrize(
    ("settings", "says", "memory"),
    [
        ({"fault": "fail_start"}, "Engine core initialization failed", False),
        ({"fault": "out_of_memory"}, "CUDA out of memory", True),
        ({"engine": {"kind": "generte"}}, "engine.kind is 'generte'", False),
        ({"sped": 3}, "sped is unknown. Did you mean 'speed'?", False),
        ({"host": "192.0.2.1"}, "192.0.2.1:0: ", False),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    house: House, settings: dict[str, Any], says: str, memory: bool
) -> None:
    with pytest.raises(StartError, match=says) as caught:
        house.start({**AT_ONCE, **settings})
    assert caught.value.out_of_memory is memory
    assert processes(house.folder) == []
    if "fault" in settings:
        assert says in caught.value.log


def test_a_taken_port_is_told(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"127.0.0.1:{port}: .*in use"):
            house.start({**AT_ONCE, "port": port})


def test_a_start_has_a_deadline(house: House) -> None:
    with pytest.raises(StartError, match=r"m: not ready after 0.5 s"):
        house.start({**AT_ONCE, "speed": 1, "stages": {"process": WITHIN_S}}, deadline_s=0.5)
    assert processes(house.folder) == []


def test_a_slow_start_is_slow(house: House) -> None:
    settings = {**AT_ONCE, "speed": 1, "stages": {"weights": 1.0}, "fault": "slow_start"}
    with pytest.raises(StartError, match="not ready after 1 s"):
        house.start(settings, deadline_s=1.0)


def test_a_start_can_be_given_up(house: House) -> None:
    order = Order("m#1", "m", settings={**AT_ONCE, "speed": 1, "stages": {"weights": WITHIN_S}})
    heard = threading.Event()
    caught: list[BaseException] = []

    def start() -> None:
        try:
            house.manager.start(order, lambda *_: heard.set())
        except StartError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert heard.wait(WITHIN_S)
    order.cancelled.set()
    thread.join()
    assert [str(error) for error in caught] == ["m: the start was given up"]
    assert processes(house.folder) == []


def test_a_process_that_is_killed_while_it_starts_is_told(house: House) -> None:
    def kill(stage: str, share: float) -> None:
        for found in processes(house.folder):
            os.kill(found, signal.SIGKILL)

    order = Order("m#1", "m", settings={**AT_ONCE, "speed": 1, "stages": {"weights": WITHIN_S}})
    with pytest.raises(StartError, match="process ended with status -9"):
        house.manager.start(order, kill)


# Sleep


def test_sleep_holds_requests_until_it_is_woken(house: House) -> None:
    engine = house.start({**STEADY, "sleep_s": {"1": 0.2}, "wake_s": {"1": 0.3}})
    client = Client(engine)
    begun = time.monotonic()
    house.manager.sleep(engine, 1)
    assert time.monotonic() - begun >= 0.2
    assert client.ask("GET", "/is_sleeping")[1] == {"is_sleeping": True}
    assert "weights_offloaded" in [
        line.split('sleep_state="')[1].split('"')[0]
        for line in client.ask("GET", "/metrics")[1].splitlines()
        if "sleep_state=" in line and line.endswith(" 1")
    ]
    assert house.manager.trouble(engine) == ""
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.post("/v1/completions", prompt="a", max_tokens=3))
    )
    asking.start()
    client.until("vllm:num_requests_waiting", 1)
    assert answers == []
    begun = time.monotonic()
    house.manager.wake(engine)
    assert time.monotonic() - begun >= 0.3
    asking.join()
    assert answers[0][0] == 200
    assert client.ask("GET", "/is_sleeping")[1] == {"is_sleeping": False}


def test_what_a_client_had_sent_ahead_is_forgotten_when_it_leaves(house: House) -> None:
    client = Client(house.start({**STEADY, "sleep_s": {"1": 0.3}}))
    with client.socket() as connection:
        connection.sendall(b"POST /sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        body = b'{"prompt": "a"}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
    until(lambda: client.ask("GET", "/is_sleeping")[1]["is_sleeping"])
    client.until("vllm:num_requests_waiting", 0)


def test_a_stream_goes_on_after_a_sleep(house: House) -> None:
    engine = house.start(STEADY)
    client = Client(engine)
    with client.socket() as connection:
        connection.sendall(request(prompt="a", max_tokens=TOKENS, stream=True))
        lines = (line for line in connection.makefile() if line.startswith("data: "))
        words = (json.loads(line[6:])["choices"][0]["text"] for line in lines)
        said = next(words)
        house.manager.sleep(engine, 2)
        before = int(client.metric("vllm:generation_tokens_total"))
        house.manager.wake(engine)
        said += "".join(islice(words, before + 20))
    told = client.post("/v1/completions", prompt="a", max_tokens=before + 21)[1]
    assert said == told["choices"][0]["text"]


def test_sleep_of_a_dead_engine_is_an_error(house: House) -> None:
    engine = house.start(AT_ONCE)
    os.kill(pid(engine), signal.SIGKILL)
    with pytest.raises(EngineError, match="/sleep"):
        house.manager.sleep(engine, 1)
    with pytest.raises(EngineError, match="answered 400"):
        house.manager.sleep(house.start(AT_ONCE), 3)


# Trouble


@pytest.mark.parametrize("settings", [AT_ONCE, INFER])
def test_a_well_engine_is_in_no_trouble(house: House, settings: dict[str, Any]) -> None:
    assert house.manager.trouble(house.start(settings)) == ""


def test_a_busy_engine_that_makes_progress_is_in_no_trouble(house: House) -> None:
    """Its one seat is taken, so no canary is answered in time."""
    engine = house.start({**STEADY, "engine": {**STEADY["engine"], "max_num_seqs": 1}})
    client = Client(engine)
    with client.socket() as connection:
        connection.sendall(request(prompt="a", max_tokens=TOKENS))
        client.until("vllm:num_requests_running", 1)
        assert house.manager.trouble(engine, 5.0) == ""
        assert client.post("/faults", kind="hang")[0] == 200
        assert "no answer" in house.manager.trouble(engine, 0.5)


def test_a_hung_engine_is_found_and_can_be_mended(house: House) -> None:
    engine = house.start(AT_ONCE)
    client = Client(engine)
    assert client.post("/faults", kind="hang")[0] == 200
    assert client.ask("GET", "/health")[0] == 200
    assert "no answer in" in house.manager.trouble(engine, 0.3)
    assert client.post("/faults", kind="mend")[0] == 200
    assert house.manager.trouble(engine) == ""


def test_a_stopped_process_is_found(house: House) -> None:
    engine = house.start(AT_ONCE)
    os.kill(pid(engine), signal.SIGSTOP)
    assert "no answer in" in house.manager.trouble(engine, 0.3)


def test_a_crash_cuts_a_stream_after_so_many_tokens(house: House) -> None:
    engine = house.start(STEADY)
    client = Client(engine)
    assert client.post("/faults", kind="crash", after_tokens=5)[0] == 200
    with client.socket() as connection:
        connection.sendall(request(prompt="a", max_tokens=TOKENS, stream=True))
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                parts.append(part)
    assert b"".join(parts).count(b"data: ") == 5
    until(lambda: house.manager.trouble(engine) == "its process has ended")


def test_faults_are_for_tests_only(house: House) -> None:
    house.manager = EmulatedManager(folder=house.folder)
    engine = house.start(AT_ONCE)
    assert Client(engine).post("/faults", kind="hang")[0] == 404
    with pytest.raises(StartError, match="ended with status 2") as caught:
        house.start({**AT_ONCE, "fault": "fail_start"})
    assert "'fail_start' needs --faults" in caught.value.log


# Stop


def test_stop_ends_it_at_once_whatever_it_does(house: House) -> None:
    engine = house.start(STEADY)
    client = Client(engine)
    with client.socket() as connection:
        connection.sendall(request(prompt="a", max_tokens=TOKENS, stream=True))
        client.until("vllm:num_requests_running", 1)
        house.manager.stop(engine, grace_s=NEVER_S)  # it obeys: nobody waits for that
    assert not psutil.pid_exists(pid(engine))
    house.manager.stop(engine)


def test_a_process_that_ignores_sigterm_is_killed(house: House) -> None:
    engine = house.start(AT_ONCE)
    os.kill(pid(engine), signal.SIGSTOP)
    house.manager.stop(engine, grace_s=0.2)
    assert not psutil.pid_exists(pid(engine))


# Adoption


def test_a_later_self_adopts_what_runs(house: House) -> None:
    engine = house.start(AT_ONCE)
    kept = Engine.from_dict(json.loads(json.dumps(engine.as_dict())))
    later = house.another()
    assert later.adopt(kept)
    assert later.sweep([]) == []
    assert Client(kept).post("/v1/completions", prompt="a")[0] == 200
    later.stop(kept)
    assert not later.adopt(kept)


def test_a_hung_or_exchanged_engine_is_not_adopted(house: House) -> None:
    engine = house.start(AT_ONCE)
    assert engine.process is not None
    data = engine.as_dict()
    data["process"]["start_ticks"] -= 100
    assert not house.another().adopt(Engine.from_dict(data))


def test_a_later_self_sweeps_what_nobody_knows(house: House) -> None:
    known, unknown = house.start(AT_ONCE), house.start(AT_ONCE)
    later = house.another()
    assert later.sweep([known]) == [f"emulated engine of {unknown.instance}"]
    assert processes(house.folder) == [pid(known)]


def test_managers_of_other_folders_are_left_alone(house: House, tmp_path: Path) -> None:
    engine = house.start(AT_ONCE)
    assert EmulatedManager(folder=tmp_path / "other").sweep([]) == []
    assert house.manager.trouble(engine) == ""
