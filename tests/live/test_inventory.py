"""GPUs as NVML tells of them (a fake driver under the real pynvml), and pretended ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelium.catalog import DriverFacts
from modelium.core import Gpu
from modelium.errors import ConfigError
from modelium.live.engines.gpus import PretendInventory
from modelium.managers.identity import identify
from tests.live.nvml import GIB, LOST, FakeDriver

ASK = """
import json, sys
from dataclasses import asdict
from modelium.errors import ConfigError
from modelium.live.engines.gpus import NvmlInventory
try:
    inventory = NvmlInventory()
except ConfigError as error:
    sys.exit(str(error))
print("ready", flush=True)
for _ in sys.stdin:
    readings = inventory.read()
    print(json.dumps({d: {**asdict(r), "used_bytes": r.used_bytes} for d, r in readings.items()}),
          flush=True)
"""


class Asker:
    """A process in which pynvml finds the fake driver."""

    def __init__(self, driver: FakeDriver) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=driver.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()

    def read(self, *, places: bool = True) -> list[dict[str, Any]]:
        """What it reads; with `places`, each GPU's number has to be its place in the list."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        assert not places or list(found) == [str(i) for i in range(len(found))]
        return list(found.values())

    def end(self) -> str:
        """What it wrote to stderr."""
        return self.process.communicate()[1]

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        said = self.end()
        assert failed or said == ""


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    driver = FakeDriver(tmp_path, "NVIDIA H100 80GB HBM3", "NVIDIA L4", "Colossus 1")
    driver.totals = {1: 24 * GIB}
    driver.write()
    return driver


@pytest.fixture
def asker(driver: FakeDriver) -> Iterator[Asker]:
    with Asker(driver) as asker:
        assert asker.greeting == "ready"
        yield asker


def test_a_gpu_is_told_by_its_catalogue_name(asker: Asker) -> None:
    readings = asker.read()
    assert [r["kind"] for r in readings] == ["h100-80g", "l4-24g", "colossus-1-80g"]
    assert [r["uuid"] for r in readings] == ["GPU-0000", "GPU-0001", "GPU-0002"]
    assert [r["total_bytes"] // GIB for r in readings] == [80, 24, 80]
    assert {r["lost"] for r in readings} == {""}


def test_other_peoples_processes_count(driver: FakeDriver, asker: Asker) -> None:
    driver.reserved_bytes = GIB // 2
    driver.processes = [(0, 4242, 30 * GIB, "c"), (0, 77, 2 * GIB, "c"), (1, 4242, GIB, "c")]
    driver.percent = [93, 0, -1]
    driver.write()
    first, second, third = asker.read()
    assert first["processes"] == {"4242": 30 * GIB, "77": 2 * GIB}
    assert first["used_bytes"] == 32 * GIB + GIB // 2
    assert first["free_bytes"] == 80 * GIB - first["used_bytes"]
    assert second["processes"] == {"4242": GIB}
    assert [r["utilisation"] for r in (first, second, third)] == [0.93, 0.0, None]


def test_a_process_that_computes_and_draws_counts_once(driver: FakeDriver, asker: Asker) -> None:
    driver.processes = [(0, 5, 3 * GIB, "c"), (0, 5, 3 * GIB, "g"), (0, 6, GIB, "g")]
    driver.write()
    assert asker.read()[0]["processes"] == {"5": 3 * GIB, "6": GIB}


def test_memory_that_the_driver_does_not_tell_is_zero(driver: FakeDriver, asker: Asker) -> None:
    driver.processes = [(0, 5, -1, "c")]
    driver.write()
    assert asker.read()[0]["processes"] == {"5": 0}


def test_a_killed_process_gives_its_memory_back(driver: FakeDriver, asker: Asker) -> None:
    driver.processes = [(0, 4242, 30 * GIB, "c")]
    driver.write()
    assert asker.read()[0]["free_bytes"] == 50 * GIB
    driver.processes = []
    driver.write()
    assert asker.read()[0]["free_bytes"] == 80 * GIB


def test_a_gpu_is_lost_and_comes_back(driver: FakeDriver, asker: Asker) -> None:
    assert [bool(r["lost"]) for r in asker.read()] == [False, False, False]
    driver.status[1] = LOST
    driver.write()
    readings = asker.read()
    assert [bool(r["lost"]) for r in readings] == [False, True, False]
    assert "lost" in readings[1]["lost"].lower()
    assert (readings[1]["uuid"], readings[1]["kind"]) == ("GPU-0001", "l4-24g")
    assert readings[1]["total_bytes"] == 0
    driver.status[1] = 0
    driver.write()
    asker.read()
    assert asker.read()[1]["lost"] == ""


def test_a_gpu_that_is_lost_from_the_start_has_its_place(driver: FakeDriver) -> None:
    driver.status[0] = LOST
    driver.write()
    with Asker(driver) as asker:
        assert [bool(r["lost"]) for r in asker.read()] == [True, False, False]
        driver.status[0] = 0
        driver.write()
        asker.read()
        assert [r["uuid"] for r in asker.read()] == ["GPU-0000", "GPU-0001", "GPU-0002"]
        driver.status[0] = LOST
        driver.write()
        assert asker.read()[0]["uuid"] == "GPU-0000"


def test_gpus_keep_their_number_when_the_driver_counts_anew(
    driver: FakeDriver, asker: Asker
) -> None:
    """After a restart without GPU 1, the driver calls the third one 1: engines must not move."""
    asker.read()
    names, uuids = driver.names, driver.uuids
    driver.names, driver.uuids = [names[0], names[2]], [uuids[0], uuids[2]]
    driver.write()
    readings = asker.read()
    assert [r["uuid"] for r in readings] == uuids
    assert [r["lost"] for r in readings] == ["", "the driver lists it no longer", ""]
    driver.names, driver.uuids = names, uuids
    driver.write()
    assert [r["lost"] for r in asker.read()] == ["", "", ""]


def test_a_gpu_that_is_added_gets_a_number_of_its_own(driver: FakeDriver) -> None:
    names, uuids = driver.names, driver.uuids
    driver.names, driver.uuids = [names[0], names[2]], [uuids[0], uuids[2]]
    driver.write()
    with Asker(driver) as asker:
        asker.read()
        driver.names, driver.uuids = names, uuids
        driver.write()
        assert [r["uuid"] for r in asker.read()] == [uuids[0], uuids[2], uuids[1]]


def test_mig_instances_are_gpus_of_their_own_and_their_parent_is_none(driver: FakeDriver) -> None:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.20gb"
    driver.instances = {0: {0: ("MIG-a", 20 * GIB, name), 3: ("MIG-b", 20 * GIB, name)}}
    driver.processes = [((0, 3), 4242, 5 * GIB, "c"), (1, 77, GIB, "c")]
    driver.write()
    with Asker(driver) as asker:
        readings = asker.read(places=False)
        assert [r["device"] for r in readings] == [1, 2, 3, 4]
        assert [r["uuid"] for r in readings] == ["GPU-0001", "GPU-0002", "MIG-a", "MIG-b"]
        assert [r["number"] for r in readings] == ["1", "2", "0:0", "0:3"]
        assert [r["parent"] for r in readings] == ["", "", "GPU-0000", "GPU-0000"]
        first, second = readings[2:]
        assert (first["total_bytes"], first["processes"]) == (20 * GIB, {})
        assert (second["free_bytes"], second["processes"]) == (15 * GIB, {"4242": 5 * GIB})
        assert [r["utilisation"] for r in readings] == [0.0, 0.0, None, None]
        # One is destroyed, another one is made in its place: that is another GPU.
        driver.instances[0] = {0: ("MIG-a", 20 * GIB, name), 1: ("MIG-c", 40 * GIB, name)}
        driver.processes = []
        driver.write()
        told = {r["uuid"]: (r["device"], r["lost"]) for r in asker.read(places=False)}
        assert told["MIG-b"] == (4, "the driver lists it no longer")
        assert (told["MIG-a"], told["MIG-c"]) == ((3, ""), (5, ""))


def test_a_driver_that_is_restarted_is_found_again(driver: FakeDriver, asker: Asker) -> None:
    asker.read()
    driver.loaded = False
    driver.write()
    readings = asker.read()
    assert ["driver" in r["lost"].lower() for r in readings] == [True, True, True]
    driver.loaded = True
    driver.write()
    assert [r["lost"] for r in asker.read()] == ["", "", ""]


def test_without_a_driver_it_says_what_to_do(driver: FakeDriver) -> None:
    driver.loaded = False
    driver.write()
    said = Asker(driver).end()
    assert "no NVIDIA GPU can be read: Driver Not Loaded" in said
    assert "simulated GPUs" in said


def test_without_the_library_it_says_the_same(driver: FakeDriver) -> None:
    driver.library.unlink()
    assert "no NVIDIA GPU can be read: NVML Shared Library Not Found" in Asker(driver).end()


def test_a_driver_without_gpus_is_refused(driver: FakeDriver) -> None:
    driver.names = []
    driver.write()
    assert "has no GPU" in Asker(driver).end()


# Pretended ones


@pytest.fixture
def pretend() -> PretendInventory:
    return PretendInventory([Gpu("a", "node", 10 * GIB, "l4-24g"), Gpu("b", "node", 20 * GIB)])


@pytest.fixture
def child() -> Iterator[psutil.Process]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_pretended_gpus_are_as_configured(pretend: PretendInventory) -> None:
    assert pretend.pretend
    assert [asdict(r) for r in pretend.read().values()] == [
        {
            "device": device,
            "uuid": f"pretend-{name}",
            "name": kind or name,
            "kind": kind,
            "total_bytes": size * GIB,
            "free_bytes": size * GIB,
            "processes": {},
            "utilisation": None,
            "lost": "",
            "number": "",
            "parent": "",
            "facts": asdict(DriverFacts()),
        }
        for device, name, kind, size in [(0, "a", "l4-24g", 10), (1, "b", "", 20)]
    ]


def test_what_a_process_holds_counts_while_it_lives(
    pretend: PretendInventory, child: psutil.Process
) -> None:
    pretend.hold(identify(child.pid), 0, 4 * GIB)
    pretend.hold(identify(child.pid), 1, 5 * GIB)
    first, second = pretend.read().values()
    assert (first.used_bytes, first.processes) == (4 * GIB, {child.pid: 4 * GIB})
    assert second.free_bytes == 15 * GIB
    pretend.hold(identify(child.pid), 0, GIB)
    pretend.hold(identify(child.pid), 1, 0)
    first, second = pretend.read().values()
    assert first.used_bytes == GIB
    assert second.processes == {}
    child.kill()
    child.wait()
    assert pretend.read()[0].used_bytes == 0


def test_a_dead_child_that_nobody_waited_for_holds_nothing(pretend: PretendInventory) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        pretend.hold(identify(process.pid), 0, GIB)
        assert pretend.read()[0].used_bytes == GIB
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pretend.read()[0].used_bytes == 0


def test_another_process_with_the_same_number_is_not_it(
    pretend: PretendInventory, child: psutil.Process
) -> None:
    pretend.hold(replace(identify(child.pid), start_ticks=1), 0, GIB)
    assert pretend.read()[0].used_bytes == 0


def test_a_gpu_that_is_not_configured_is_an_error(
    pretend: PretendInventory, child: psutil.Process
) -> None:
    with pytest.raises(ConfigError, match=r"no GPU 2: the configuration simulates 2"):
        pretend.hold(identify(child.pid), 2, GIB)
