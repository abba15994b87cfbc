"""Whose GPU memory it is, where the driver's process numbers are known and where they are not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from modelium.live.engines.gpu_processes import PIDS, foreign_bytes, held, newcomers
from modelium.live.engines.gpus import Reading
from modelium.managers.engine import Engine
from modelium.managers.identity import identify
from tests.live.nvml import GIB

HOST = 4_100_000
"""A process of the host's: more than any number here."""


def reading(*, used: int = 0, **processes: int) -> Reading:
    by_pid = {int(name[1:]): size * GIB for name, size in processes.items()}
    return Reading(
        0, "GPU-a", "H100", "h100-80g", 80 * GIB, (80 - used) * GIB - sum(by_pid.values()), by_pid
    )


def engine(name: str = "m#1", **extra: Any) -> Engine:
    return Engine(name, "m", "vllm", "http://x", "openai", "m", (0,), extra=extra)


@pytest.fixture
def mine() -> Iterator[Engine]:
    """An engine whose process leads a group of its own, as those of engines do."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield Engine(
            "m#1", "m", "vllm", "http://x", "openai", "m", (0,), process=identify(process.pid)
        )
        process.kill()


def foreign(seen: Reading, *booked: tuple[Engine, int], own_pids: bool = True) -> int:
    engines = [each for each, _ in booked]
    given = [(each, size * GIB) for each, size in booked]
    return foreign_bytes(seen, engines, given, own_pids=own_pids) // GIB


def test_with_the_hosts_numbers_what_no_engine_has_is_others(mine: Engine) -> None:
    assert mine.process is not None
    seen = reading(**{f"p{mine.process.pid}": 20, f"p{HOST}": 7})
    assert held(seen, mine) == 20 * GIB
    assert foreign(seen, (mine, 25), own_pids=False) == 7
    assert foreign(seen, (engine(), 25), own_pids=False) == 27, "another group"


@pytest.mark.parametrize(
    ("processes", "booked", "others"),
    [
        ({"p4100000": 20}, [20], 0),
        ({"p4100000": 20, "p4100001": 7}, [20], 7),
        ({"p4100000": 20, "p4100001": 15}, [20, 16], 0),  # never below nothing
        ({"p4100000": 20, "p4100001": 30}, [], 50),
        ({"p4100000": 24}, [20], 4),  # rather too much than too little
    ],
)
def test_with_other_numbers_engines_hold_what_they_were_given(
    processes: dict[str, int], booked: list[int], others: int
) -> None:
    given = [(engine(f"m#{i}"), size) for i, size in enumerate(booked)]
    assert foreign(reading(**processes), *given) == others


def test_memory_of_processes_that_the_driver_does_not_list_is_not_free() -> None:
    assert foreign(reading(used=21), (engine(), 20)) == 0
    assert foreign(reading(used=51), (engine(), 20)) == 30
    assert foreign(reading(used=1)) == 0, "what the driver keeps for itself"
    assert foreign(reading(used=51), (engine(), 20), own_pids=False) == 0, "as it always was"


def test_an_engine_that_was_recognised_is_measured() -> None:
    known = engine(**{PIDS: [HOST, HOST + 1]})
    seen = reading(**{f"p{HOST}": 20, f"p{HOST + 1}": 2, f"p{HOST + 2}": 7})
    assert held(seen, known) == 22 * GIB
    assert foreign(seen, (known, 18)) == 7


@pytest.mark.parametrize(
    ("size", "found"), [(20, [HOST + 1]), (5, [HOST + 1]), (30, [HOST + 1]), (4, []), (31, [])]
)
def test_what_appears_with_an_engine_is_its_own_if_it_holds_what_it_was_given(
    size: int, found: list[int]
) -> None:
    now = {0: reading(**{f"p{HOST}": 9, f"p{HOST + 1}": size})}
    assert newcomers({0: [HOST]}, now, [engine()], 20 * GIB) == found


def test_an_engine_on_two_gpus_has_to_be_on_both() -> None:
    there = reading(**{f"p{HOST}": 20})
    assert newcomers({0: [], 1: []}, {0: there, 1: there}, [], 20 * GIB) == [HOST]
    assert newcomers({0: [], 1: []}, {0: there, 1: reading()}, [], 20 * GIB) == []
    assert newcomers({}, {0: there}, [], 20 * GIB) == []
