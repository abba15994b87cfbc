"""Which process it is: told from a later one with the same number, whatever the clock says.

    process = identify(pid)
    runs(process)               # also of a later executor, after the machine's time was set

A number is used again once its process has ended. What tells the two apart is when they started,
counted by the kernel in clock ticks since the machine came up: unlike a time of day, this does not
move when somebody sets the clock, or when a virtual machine is resumed. Ticks are counted anew
after each start of the machine, so its boot id belongs to them.
Source: proc_pid_stat(5), fields 3 and 22; proc_sys_kernel(5), random/boot_id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

GONE = ("Z", "X", "x")
"""States of a process that has ended."""
NEVER = -1
"""As start ticks: no process is this one."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine, from its start to its end."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the machine came up."""
    boot_id: str
    """Of the run of the machine that the ticks are counted in."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a journal or a note."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Process:
        """Read back what `as_dict` gave, or what earlier versions wrote in its place.

        Those kept `started_s`, a time of day: whoever has the number now and started then, to a
        second, is the process. Raises KeyError, TypeError or ValueError if it is neither.
        """
        pid = int(given["pid"])
        if "started_s" in given:
            return _started(pid, float(given["started_s"]))
        return cls(pid, int(given["start_ticks"]), str(given["boot_id"]))


def identify(pid: int) -> Process:
    """The process that has this number now. Raises ProcessLookupError."""
    return Process(pid, _stat(pid)[1], boot_id())


def runs(process: Process) -> bool:
    """Whether it is still there, is not another one with its number, and has not ended."""
    try:
        return holds_its_number(process) and _stat(process.pid)[0] not in GONE
    except ProcessLookupError:
        return False


def holds_its_number(process: Process) -> bool:
    """Whether the number is nobody else's: it runs, or has ended and its parent did not ask yet."""
    try:
        return _stat(process.pid)[1] == process.start_ticks and boot_id() == process.boot_id
    except ProcessLookupError:
        return False


@cache
def boot_id() -> str:
    """The present run of the machine; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, int]:
    """State and start ticks of the process that has this number now."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # also where it ends while it is read
        raise ProcessLookupError(f"no process has the number {pid}") from None
    # The second field is its name, in brackets; that may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _started(pid: int, started_s: float) -> Process:
    """The process with this number that started at a time of day, if it is that one still."""
    try:
        if abs(psutil.Process(pid).create_time() - started_s) < 1.0:
            return identify(pid)
    except (psutil.Error, ProcessLookupError):
        pass
    return Process(pid, NEVER, "")
