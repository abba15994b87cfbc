"""Whose GPU memory it is: an engine's, or somebody else's.

The driver tells memory by process. An engine's processes are known by their group. In a container
the driver mostly tells the host's numbers, which mean nothing there, or no processes at all: then
an engine is known by what appeared on its GPUs while it came up, and where that is not clear, by
what it was given: so much of the memory that nobody accounts for is taken to be its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from modelium.live.engines.gpus import Reading
from modelium.managers.engine import Engine
from modelium.units import GIB, MIB

HOST_NAMESPACE = "pid:[4026531836]"
"""The first pid namespace always has this number. Source: Linux, include/linux/proc_ns.h,
PROC_PID_INIT_INO."""
DRIVER_BYTES = GIB
"""A driver keeps at most so much of a GPU for itself (half a GiB on an H100)."""
SPARE_BYTES = 512 * MIB
LEAST_SHARE = 0.25
"""What appears while an engine comes up and is less of what it was given is not the engine."""
PIDS = "driver_pids"
"""In an engine's `extra`: its processes by the driver's numbers, where those are not ours."""
UNTOLD = (
    "the driver does not tell this engine's processes by numbers that are known here, as in a"
    " container with process numbers of its own; it is taken to hold what it was given, and is"
    " not measured. Run the container with the host's (docker --pid=host, Kubernetes"
    " hostPID: true) to have it measured"
)


def has_own_pids() -> bool:
    """Whether process numbers here may be others than the host's."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) != HOST_NAMESPACE
    except OSError:
        return False


def group(engine: Engine) -> int:
    """The process group whose memory is the engine's; 0 if it is not known."""
    return engine.process.pid if engine.process else int(engine.extra.get("server_pid", 0))


def held(reading: Reading, engine: Engine) -> int:
    """What an engine holds of a GPU: its workers hold it, not the leader of its group.

    Where one server holds several engines, each names its own workers. 0 if nobody can tell.
    """
    mine = group(engine)
    workers = engine.extra.get(PIDS) or engine.extra.get("pids")
    if workers is not None:
        return sum(size for pid, size in reading.processes.items() if pid in workers)
    return sum(size for pid, size in reading.processes.items() if group_of(pid) == mine)


def strangers(reading: Reading, engines: Collection[Engine]) -> dict[int, int]:
    """Bytes by process of those that are none of `engines`' as far as that is known."""
    groups = {group(engine) for engine in engines}
    known = {pid for engine in engines for pid in engine.extra.get(PIDS, ())}
    return {
        pid: size
        for pid, size in reading.processes.items()
        if pid not in known and group_of(pid) not in groups
    }


def foreign_bytes(
    reading: Reading,
    engines: Collection[Engine],
    booked: Sequence[tuple[Engine, int]],
    *,
    own_pids: bool,
) -> int:
    """What others hold of a GPU: `booked` are its engines with what each was given there.

    `own_pids`: process numbers here are others than the driver's. Then what nobody here accounts
    for is first taken for the engines that were not seen.
    """
    unknown = sum(strangers(reading, engines).values())
    if not own_pids:
        return unknown
    # Some drivers list no process of another namespace, but what it holds is not free.
    hidden = reading.used_bytes - sum(reading.processes.values()) - DRIVER_BYTES
    unseen = sum(size for engine, size in booked if not held(reading, engine))
    return max(0, unknown + max(0, hidden) - unseen)


def newcomers(
    before: Mapping[int, Collection[int]],
    readings: Mapping[int, Reading],
    engines: Collection[Engine],
    given_bytes: int,
) -> list[int]:
    """The processes that came to an engine's GPUs while it came up and hold what it was given.

    `before`: those that nobody knew, by GPU. Empty if they hold far more or less on one of them.
    """
    found: set[int] = set()
    for device, there in before.items():
        now = strangers(readings[device], engines) if device in readings else {}
        new = {pid: size for pid, size in now.items() if pid not in there}
        size = sum(new.values())
        if not LEAST_SHARE * given_bytes <= size <= 1.5 * given_bytes + SPARE_BYTES:
            return []
        found.update(new)
    return sorted(found)


def group_of(pid: int) -> int:
    """The group of a process here; -1 if there is none of this number."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1
