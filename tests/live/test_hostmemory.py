"""RAM is what the machine and its control groups have, and sleepers take no more than is free."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.core import Load, Phase, Sleep
from modelium.live.engines import host_memory
from modelium.live.engines.host_memory import HostMemory, HostWatch
from modelium.live.requests.interface import RefusedError
from modelium.testing.scenarios import model
from modelium.units import GIB
from tests.core.conftest import Books
from tests.live.house import house
from tests.live.idle import Idle, loaded, operations

NO_LIMIT = 0x7FFFFFFFFFFFF000
TOTAL, AVAILABLE = 64 * GIB, 40 * GIB


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 40 of them available, with room for control groups."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    rows = {"MemTotal": TOTAL, "MemFree": GIB, "MemAvailable": AVAILABLE, "Buffers": 0, "Cached": 0}
    rows |= dict.fromkeys(("Active", "Inactive", "Shmem", "Slab", "SReclaimable"), 0)
    text = "".join(f"{name}: {size // 1024} kB\n" for name, size in rows.items())
    (proc / "meminfo").write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    return proc / "self"


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def mounted(groups: Path, top: Path, kind: str, root: str, path: str) -> None:
    options = "rw,memory" if kind == "cgroup" else "rw"
    line = f"41 31 0:38 {root} {top} rw,relatime shared:9 - {kind} {kind} {options}\n"
    (groups / "mountinfo").write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{line}")
    said = f"4:memory:{path}\n" if kind == "cgroup" else f"0::{path}\n"
    (groups / "cgroup").write_text(f"8:pids:/\n{said}")


def test_without_control_groups_it_is_the_machines(groups: Path) -> None:
    assert host_memory.read(groups) == HostMemory(TOTAL, AVAILABLE)


@pytest.mark.parametrize("root", ["/", "/pod"])
def test_a_limit_of_a_group_above_counts_too(groups: Path, tmp_path: Path, root: str) -> None:
    top = tmp_path / "fs"
    pod = top / "pod" if root == "/" else top
    group(
        pod, memory__max=20 * GIB, memory__high="max", memory__current=12 * GIB,
        memory__stat=f"anon 1\ninactive_file {3 * GIB}\nactive_file {2 * GIB}",
    )  # fmt: skip
    group(pod / "server", memory__max="max", memory__current=5 * GIB, memory__stat="anon 1")
    mounted(groups, top, "cgroup2", root, "/pod/server")
    assert host_memory.read(groups) == HostMemory(20 * GIB, 11 * GIB)
    group(pod / "server", memory__high=6 * GIB)
    assert host_memory.read(groups) == HostMemory(6 * GIB, GIB)


def test_which_groups_these_are_is_found_out_once(groups: Path, tmp_path: Path) -> None:
    top = tmp_path / "fs"
    group(top, memory__max=20 * GIB, memory__current=12 * GIB, memory__stat="anon 1")
    mounted(groups, top, "cgroup2", "/pod", "/pod")
    read = host_memory.reader(groups)
    assert read() == HostMemory(20 * GIB, 8 * GIB)
    for table in ("cgroup", "mountinfo"):
        (groups / table).unlink()
    group(top, memory__max=10 * GIB, memory__current=9 * GIB)  # the figures are read anew
    assert read() == HostMemory(10 * GIB, GIB)


def test_version_1_has_the_same(groups: Path, tmp_path: Path) -> None:
    top = tmp_path / "fs"
    group(top, memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=50 * GIB)
    group(
        top / "docker/abc", memory__limit_in_bytes=16 * GIB, memory__usage_in_bytes=15 * GIB,
        memory__stat=f"inactive_file 0\ntotal_inactive_file {4 * GIB}",
    )  # fmt: skip
    mounted(groups, top, "cgroup", "/", "/docker/abc")
    assert host_memory.read(groups) == HostMemory(16 * GIB, 5 * GIB)
    mounted(groups, top / "docker/abc", "cgroup", "/docker/abc", "/docker/abc")  # in a container
    assert host_memory.read(groups) == HostMemory(16 * GIB, 5 * GIB)


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real control group with a limit of 512 MiB, where this machine lets us make one."""
    for top, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                      ("/sys/fs/cgroup", "memory.max")):  # fmt: skip
        folder = Path(top) / f"modelium-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(512 << 20))
        except OSError:
            folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no control group can be made here: that needs root, and a writable /sys/fs/cgroup")


def test_a_real_limit_is_seen_by_who_is_under_it(limited: Path) -> None:
    code = f"""
import json, os, pathlib
pathlib.Path({str(limited / "cgroup.procs")!r}).write_text(str(os.getpid()))
from modelium.live.engines import host_memory
found = host_memory.read()
print(json.dumps([found.total_bytes, found.available_bytes]))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, available = json.loads(told.stdout)
    assert total == 512 << 20
    assert 0 < available < 512 << 20


def test_a_tenth_stays_free_and_a_quarter_more_than_the_weights_is_taken() -> None:
    assert host_memory.reserve_bytes(100 * GIB) == 10 * GIB
    assert host_memory.reserve_bytes(8 * GIB) == 2 * GIB
    assert host_memory.reserve_bytes(100 * GIB, 0) == 0
    assert host_memory.for_weights(60 * GIB, 10 * GIB) == 40 * GIB
    assert host_memory.for_weights(60 * GIB, 10 * GIB, 30 * GIB) == 10 * GIB
    assert host_memory.for_weights(GIB, 2 * GIB) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["sleep", "asleep", "wake", "look"]), st.integers(0, 120)),
        max_size=30,
    )
)
def test_what_is_free_and_what_is_pinned_is_never_more_than_there_is(
    steps: list[tuple[str, int]],
) -> None:
    b = Books(a=10)
    available = [100 * GIB]
    watch = HostWatch(b.state, lambda: HostMemory(200 * GIB, available[0]), 5 * GIB)
    for verb, size in steps:
        if verb == "look":
            available[0] = size * GIB
        watch.look()
        free = b.state.host_free_bytes("n0")
        going = sum(c.host_bytes for c in b.state.instances.values() if c.phase is Phase.SUSPENDING)
        assert (free + going) * 1.25 <= max(available[0] - 5 * GIB, going * 1.25) + 2
        assert b.state.ram["n0"].capacity_bytes <= 100 * GIB  # as configured
        assert b.state.ram["n0"].pinned_bytes == sum(
            copy.host_bytes for copy in b.state.instances.values()
        )
        ready = [c for c in b.state.instances.values() if c.phase is Phase.READY]
        asleep = [c for c in b.state.instances.values() if c.phase is Phase.SUSPENDING]
        if verb == "sleep" and free >= 10 * GIB:
            copy = b.state.copy(ready[0].id) if ready else b.add("a", "n0g0")
            b.state.change(copy, Phase.SUSPENDING, host_bytes=10 * GIB, sleep_level=1)
        elif verb == "asleep" and asleep:
            b.state.change(b.state.copy(asleep[0].id), Phase.ASLEEP)
            available[0] = max(0, available[0] - round(12.5 * GIB))
        elif verb == "wake" and asleep:
            b.state.change(b.state.copy(asleep[0].id), Phase.READY, host_bytes=0, sleep_level=0)


def test_a_sleep_that_does_not_fit_is_refused_with_numbers_and_the_policy_unloads(
    tmp_path: Path,
) -> None:
    memory = [HostMemory(256 * GIB, 90 * GIB)]
    more = {"host_memory": lambda: memory[0], "host_reserve_bytes": 10 * GIB}

    async def by_hand() -> None:
        async with house(tmp_path / "1", [model("a", 60)], policy=Idle(), **more) as here:
            name = await loaded(here)
            memory[0] = HostMemory(256 * GIB, 84 * GIB)  # 74 for 60 GiB of weights: 75 are needed
            with pytest.raises(RefusedError) as refused:
                await operations(here).sleep("a")
            assert str(refused.value) == (
                f"{name} needs 60.0 GiB of n0's RAM to sleep, 59.2 GiB is free"
            )
            assert here.phases("a") == ["ready"]
            memory[0] = HostMemory(256 * GIB, 85 * GIB)
            await operations(here).sleep("a")  # read anew, just before
            memory[0] = HostMemory(256 * GIB, 10 * GIB)  # it has taken 75
            here.cluster.host.look()
            assert operations(here).status()["hosts"] == [
                {
                    "node": "n0", "capacity_bytes": 60 * GIB, "sleeping_bytes": 60 * GIB,
                    "cached_bytes": 0, "free_bytes": 0,
                }
            ]  # fmt: skip

    async def by_policy() -> None:
        memory[0] = HostMemory(256 * GIB, 40 * GIB)
        two = [model("a", 60), model("b", 60)]
        async with house(tmp_path / "2", two, policy="lru:sleep_level=1", **more) as here:
            for name in "aba":
                assert await here.ask(name)
            kinds = [line.kind for _, line in here.cluster.decisions]
            assert kinds == ["load", "unload", "load", "unload", "load"]
            assert not any(line.error for _, line in here.cluster.decisions)

    asyncio.run(by_hand())
    asyncio.run(by_policy())


def test_two_that_fall_asleep_at_once_do_not_take_the_same_ram(tmp_path: Path) -> None:
    more = {"host_memory": lambda: HostMemory(256 * GIB, 60 * GIB), "host_reserve_bytes": 0}
    two = [model("a", 30), model("b", 30)]

    async def run() -> None:
        async with house(tmp_path, two, policy=Idle(), **more) as here:
            names = [await loaded(here, name) for name in "ab"]
            for name in names:
                here.cluster.start(Sleep(name, 1, "the test"))
            first, second = (line for _, line in list(here.cluster.decisions)[-2:])
            assert second.error == "b#2 needs 30.0 GiB of n0's RAM to sleep, 18.0 GiB is free"
            await here.until(lambda: here.phases("a") == ["asleep"])
            assert not first.error
            here.cluster.start(Load("b", ("n0g0",), "the test"))

    asyncio.run(run())
