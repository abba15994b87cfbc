"""Starts of a real vLLM that fail or are given up: the cause is told, nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from modelium.managers.engine import Engine, EngineError, Order, StartError
from tests.live import tiny
from tests.live.running import until
from tests.managers.vllm_house import (
    DEADLINE_S,
    SMALL,
    manager,
    needs_vllm,
    order,
    processes_of,
)

pytestmark = [pytest.mark.engines, needs_vllm()]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """After each test: no process of an engine below its folder."""
    yield
    left = processes_of(tmp_path)
    for one in left:
        one.kill()
    assert left == []


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StartError]:
    """Why each start failed; they fail side by side, because each takes half a minute."""
    folder = tmp_path_factory.mktemp("vllm")
    whole = tiny.llama(folder / "whole")
    orders = [
        order("no weights", tiny.llama(folder / "m", weights=False)),
        order("huge pool", whole, settings={"kv_cache_memory_bytes": "900000G"}),
        order("heads of 16", tiny.llama(folder / "heads", head_dim=16)),
        order("odd flag", whole, settings={"flags": ["--no-such-flag"]}),
    ]

    def why(started: Future[Engine]) -> StartError:
        with pytest.raises(StartError) as raised:
            started.result()
        return raised.value

    with ThreadPoolExecutor() as pool:
        starts = {
            one.model: pool.submit(manager(folder / f"logs {one.model}").start, one)
            for one in orders
        }
        found = {model: why(started) for model, started in starts.items()}
    assert processes_of(folder) == []
    return found


def test_no_weights(failures: dict[str, StartError]) -> None:
    error = failures["no weights"]
    assert str(error) == "no weights: Cannot find any model weights with `no weights`"
    assert not error.out_of_memory
    assert error.log


def test_a_kv_pool_larger_than_the_memory_there_is(failures: dict[str, StartError]) -> None:
    assert "Available memory" in str(failures["huge pool"])
    assert failures["huge pool"].out_of_memory


def test_it_listens_and_is_healthy_and_cannot_serve(failures: dict[str, StartError]) -> None:
    """Only the canary finds it: vLLM's attention on CPUs has no heads of 16."""
    assert "Unsupported CPU attention configuration: head_dim=16" in str(failures["heads of 16"])


def test_a_flag_that_vllm_does_not_know(failures: dict[str, StartError]) -> None:
    assert str(failures["odd flag"]) == "odd flag: unrecognized arguments: --no-such-flag"


def test_only_what_another_try_may_change_is_tried_again(failures: dict[str, StartError]) -> None:
    final = {model for model, error in failures.items() if error.final}
    assert final == {"no weights", "odd flag"}


def test_what_needs_no_process_to_be_found_out(tmp_path: Path) -> None:
    made = manager(tmp_path / "logs")
    with pytest.raises(StartError, match=f"m: its files are not at {tmp_path / 'none'}"):
        made.start(order("m", tmp_path / "none"))
    with pytest.raises(EngineError, match="m is not loaded"):
        made.get_model_endpoint("m")


def test_a_start_is_given_up_at_once_also_while_it_waits_for_its_turn(tmp_path: Path) -> None:
    made, path = manager(tmp_path / "logs"), tiny.llama(tmp_path / "m")
    first, second = order("first", path), order("second", path)
    began, waits = threading.Event(), threading.Event()
    with ThreadPoolExecutor() as pool:
        one = pool.submit(made.start, first, lambda *_: began.set())
        assert began.wait(DEADLINE_S)
        two = pool.submit(made.start, second, lambda stage, _: stage == "queued" and waits.set())
        assert waits.wait(DEADLINE_S), "one start at a time on a GPU"
        [server] = until(lambda: serving(tmp_path))
        server.suspend()  # it will not be ready, however fast this machine is
        assert serving(tmp_path) == [server]
        second.cancelled.set()
        with pytest.raises(StartError, match="second: the start was given up"):
            two.result(DEADLINE_S)
        assert not one.done()
        first.cancelled.set()
        with pytest.raises(StartError, match="first: the start was given up"):
            one.result(DEADLINE_S)


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    given = Order("m", "m", tiny.llama(tmp_path / "m"), settings=SMALL, deadline_s=0.5)
    with pytest.raises(StartError, match=r"m: not ready after 0\.5 s"):
        manager(tmp_path / "logs").start(given)


def serving(folder: Path) -> list[psutil.Process]:
    """Servers below a folder."""
    return [one for one in processes_of(folder) if "serve" in one.cmdline()]
