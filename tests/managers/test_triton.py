"""A real Triton: models come and go, break, hang and die, and their server with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from modelium.managers.engine import Engine, EngineError, StartError
from modelium.managers.triton.client import Client, GoneError
from modelium.managers.triton.manager import TritonManager
from tests.managers.triton_house import (
    BURN,
    DEADLINE_S,
    DIE,
    SLEEP,
    SLOW,
    began,
    double,
    doubled,
    manager,
    needs_triton,
    order,
    server_of,
)
from tests.managers.vllm_house import end_all, processes_of

pytestmark = [pytest.mark.engines, needs_triton()]


class House:
    """A manager, a model folder, and one engine that must survive whatever happens beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = double(folder / "double")
        self.manager = manager(folder / "logs", stall_s=3.0)
        self.stays = self.manager.start(order("stays#1", self.path))

    def state(self, engine: Engine) -> str:
        client = Client(engine.extra["grpc"])
        try:
            return client.states(10.0).get(engine.name, "")
        finally:
            client.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("triton"))
    prefix = made.manager._servers["gpu0"]._prefix
    try:
        yield made
        assert [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]
        made.manager.stop(made.stays)
        assert processes_of(made.folder) == []
    finally:
        end_all(made.manager._processes)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def test_a_model_is_loaded_answers_and_is_gone_when_stop_returns(house: House) -> None:
    heard: list[str] = []
    engine = house.manager.start(order("a#1", house.path), lambda stage, _: heard.append(stage))
    assert heard == ["server", "files", "weights", "canary"]
    assert list(engine.stages) == heard
    assert doubled(engine, 1.5, 4) == [3, 8]
    assert engine.extra["inputs"] == ["X"]
    assert engine.extra["outputs"] == ["Y"]
    house.manager.stop(engine)
    assert house.state(engine) in ("UNAVAILABLE", "")
    assert "error" not in str(doubled(house.stays, 1))
    assert not [one for one in processes_of(house.folder) if "a~1" in " ".join(one.cmdline())]


def test_copies_of_one_model_are_loaded_and_unloaded_one_by_one(house: House) -> None:
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(house.manager.start, [order(f"b#{n}", house.path) for n in (1, 2)])
    assert one.name != two.name
    assert doubled(one, 1) == doubled(two, 1) == [2]
    house.manager.stop(one)
    assert doubled(two, 2) == [4]
    assert "unknown model" in doubled(one, 2)
    house.manager.stop(two)


def test_what_a_model_raises_is_the_reason_and_nothing_of_it_is_left(house: House) -> None:
    with pytest.raises(StartError, match=r"^c: ValueError: these are no weights$") as raised:
        house.manager.start(order("c#1", house.path, "wrong"))
    assert not raised.value.out_of_memory
    with pytest.raises(StartError, match="out of memory") as raised:
        house.manager.start(order("c#1", house.path, "raise"))
    assert raised.value.out_of_memory
    assert not [one for one in processes_of(house.folder) if "c~1" in " ".join(one.cmdline())]
    assert doubled(house.stays, 3) == [6]


def test_a_load_that_hangs_ends_at_its_deadline(house: House) -> None:
    server = server_of(house.stays)
    with pytest.raises(StartError, match="d: not ready after 3 s"):
        house.manager.start(order("d#1", house.path, "hang", deadline_s=3.0))
    assert not [one for one in processes_of(house.folder) if "d~1" in " ".join(one.cmdline())]
    assert server_of(house.stays) == server, "nobody else has to suffer"
    assert doubled(house.stays, 3) == [6]


def test_a_start_can_be_given_up(house: House) -> None:
    cancelled = threading.Event()
    given = replace(order("e#1", house.path, "hang"), cancelled=cancelled)

    def told(stage: str, share: float) -> None:
        if stage == "weights":
            cancelled.set()

    with pytest.raises(StartError, match="the start was given up"):
        house.manager.start(given, told)
    assert doubled(house.stays, 3) == [6]


def test_what_is_in_flight_is_answered_before_the_model_goes(house: House) -> None:
    engine = house.manager.start(order("f#1", house.path))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(doubled, engine, SLOW)
        _wait_begun(engine, house)
        house.manager.stop(engine, grace_s=DEADLINE_S)
        assert answer.result() == [2 * SLOW]


def test_a_model_whose_process_died_is_repaired(house: House) -> None:
    engine = house.manager.start(order("g#1", house.path))
    assert "not healthy" in doubled(engine, DIE)
    assert house.state(engine) == "READY", "as Triton has it"
    assert house.manager.trouble(engine) == ""
    assert doubled(engine, 2) == [4]
    house.manager.stop(engine)


def test_a_server_that_was_killed_comes_back_with_all_it_had(house: House) -> None:
    others = [house.manager.start(order(f"h#{n}", house.path)) for n in (1, 2)]
    server = server_of(house.stays)
    server.kill()
    server.wait()
    with ThreadPoolExecutor() as pool:  # all find it out at the same time
        assert set(pool.map(house.manager.trouble, [house.stays, *others])) == {""}
    for engine in (house.stays, *others):
        assert doubled(engine, 2) == [4], "at the same address"
        assert server_of(engine).pid != server.pid, "what counts its memory knows where it is"
        assert len(engine.extra["pids"]) == 1
    for engine in others:
        house.manager.stop(engine)
    assert doubled(house.stays, 2) == [4]


def test_a_server_that_hangs_is_restarted(house: House) -> None:
    frozen = _server_pid(house)
    os.kill(frozen, signal.SIGSTOP)
    assert house.manager.trouble(house.stays, 1.0) == ""
    assert doubled(house.stays, 2) == [4]
    assert _server_pid(house) != frozen


def test_a_server_that_dies_of_an_unload_takes_nobody_with_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = house.manager.start(order("i#1", house.path))
    pid = _server_pid(house)
    unload = Client.unload

    def dies(client: Client, entry: str, deadline_s: float) -> None:
        unload(client, entry, deadline_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSEGV)  # as Triton 2.51 does about once in a hundred times

    with monkeypatch.context() as patched:
        patched.setattr(Client, "unload", dies)
        house.manager.stop(engine)
    assert doubled(house.stays, 2) == [4]
    assert house.state(engine) == ""


def test_a_model_that_works_is_not_in_trouble_and_one_that_sleeps_is(house: House) -> None:
    with ThreadPoolExecutor() as pool:
        busy = pool.submit(doubled, house.stays, BURN)
        _wait_begun(house.stays, house)
        while not busy.done():
            assert house.manager.trouble(house.stays, 0.5) == ""
        assert busy.result() == [2 * BURN]
        stuck = house.manager.start(order("j#1", house.path))
        asked = pool.submit(doubled, stuck, SLEEP)
        told = [house.manager.trouble(stuck, 0.5)]
        while not told[-1]:
            told.append(house.manager.trouble(stuck, 0.5))
        assert told[0] == "", "it gets its time"
        assert "no answer in 0.5 s" in told[-1]
        house.manager.stop(stuck, grace_s=1)
        assert asked.result() is not None, "its client hears of it"
    assert not [one for one in processes_of(house.folder) if "j~1" in " ".join(one.cmdline())]
    assert doubled(house.stays, 2) == [4]


def test_a_later_self_adopts_what_runs_and_ends_the_rest(tmp_path: Path) -> None:
    path = double(tmp_path / "double")
    first = manager(tmp_path / "logs")
    known = [first.start(order(f"k#{n}", path)) for n in (1, 2)]
    first.start(order("lost#1", path))
    elsewhere = first.start(order("lost#2", path, device=1))
    later = manager(tmp_path / "logs")
    read = [Engine.from_dict(json.loads(json.dumps(engine.as_dict()))) for engine in known]
    assert read == known
    assert all(later.adopt(engine) for engine in read)
    assert later.sweep(read) == ["Triton's model lost~1", "Triton server triton-gpu1"]
    assert [doubled(engine, 1) for engine in read] == [[2], [2]]
    assert not later.adopt(elsewhere)
    server_of(read[0]).kill()
    assert later.trouble(read[1]) == "", "an adopted server is repaired like another"
    last = manager(tmp_path / "logs")
    assert [last.adopt(engine) for engine in known] == [True, True], "as it is now, not as it was"
    assert server_of(known[0]).is_running()
    for engine in known:
        last.stop(engine)
    for made, names in ((first, ("triton-gpu0", "triton-gpu1")), (later, ("triton-gpu0",))):
        for name in names:
            made._processes.wait(name, DEADLINE_S)
    assert processes_of(tmp_path) == []


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    broken = TritonManager(folder=tmp_path / "broken", env={"LD_PRELOAD": "/no/such"}, base_port=1)
    broken._layout = replace(broken._layout, server=Path("/bin/false"))  # type: ignore[type-var]
    with pytest.raises(StartError, match="a: Triton for GPU 0 does not start"):
        broken.start(order("a#1", double(tmp_path / "double")))
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("which", [0, 1, 2], ids=["http", "grpc", "metrics"])
def test_a_server_whose_port_was_taken_comes_back_on_others(which: int, tmp_path: Path) -> None:
    """Somebody took it between the server's death and its return; gRPC answers before that ends."""
    path, made = double(tmp_path / "double"), manager(tmp_path / "logs")
    try:
        engine = made.start(order("l#1", path))
        server, port = server_of(engine), made._servers["gpu0"]._numbers[which]
        server.kill()
        server.wait()
        with socket.create_server(("127.0.0.1", port)):
            told = made.trouble(engine)
            if which == 0:
                assert "somebody took its port" in told
                assert made._servers["gpu0"].url != engine.url
                made.stop(engine)
                engine = made.start(order("l#2", path))
            else:
                assert told == "", "requests come over HTTP, and that port is free"
            assert doubled(engine, 2) == [4]
        made.stop(engine)
        assert processes_of(tmp_path) == []
    finally:
        made.close()


def test_somebody_elses_server_is_used_and_never_restarted(tmp_path: Path) -> None:
    path = double(tmp_path / "double")
    theirs = manager(tmp_path / "theirs")
    held = theirs.start(order("held#1", path))
    ours = TritonManager(
        held.url, tmp_path / "theirs" / "repository" / "gpu0", grpc=held.extra["grpc"]
    )
    settings = order("m", path).settings
    engine = ours.load_model("m", path, **settings)
    assert ours.is_model_loaded("m")
    assert doubled(engine, 1) == [2]
    with pytest.raises(StartError, match="m is loaded already"):
        ours.load_model("m", path)
    with pytest.raises(EngineError, match="n is not loaded"):
        ours.unload_model("n")
    ours.unload_model("m")
    assert not ours.is_model_loaded("m")
    engine = ours.load_model("m", path, **settings)
    renamed = TritonManager(
        held.url.replace("127.0.0.1", "localhost"),
        tmp_path / "theirs" / "repository" / "gpu0",
        grpc=held.extra["grpc"],
    )
    assert renamed.adopt(engine)
    assert renamed.trouble(engine) == "", "the same server by another name"
    renamed.close()
    server_of(held).kill()
    assert "not Modelium's to restart" in ours.trouble(engine)
    with pytest.raises(StartError, match="no Triton answers"):
        ours.load_model("o", path, **settings)
    ours.close()
    theirs.stop(held)
    assert processes_of(tmp_path) == []


def test_a_dead_address_and_a_missing_repository_are_said() -> None:
    from modelium.errors import ConfigError

    with pytest.raises(ConfigError, match="give the folder that it serves"):
        TritonManager("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="expected an address such as"):
        TritonManager("nonsense", "/tmp")
    client = Client("127.0.0.1:1")
    with pytest.raises(GoneError):
        client.states(2.0)
    client.close()


def _wait_begun(engine: Engine, house: House) -> None:
    """Until the request that was sent is in the model's hands."""
    until_s = time.monotonic() + DEADLINE_S
    while not (mark := began(engine.instance, house.path)).exists():
        assert time.monotonic() < until_s
        time.sleep(0.01)
    mark.unlink()


def _server_pid(house: House) -> int:
    return server_of(house.stays).pid
