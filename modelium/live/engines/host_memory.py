"""The machine's RAM as it is: what there is, and what weights of sleeping engines may take of it.

An engine that sleeps at level 1 pins its weights in RAM, where they can neither be swapped nor
dropped. Of what is available a reserve stays free, for the engines' own processes and the page
cache; a container's limits count as well as the machine's memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from modelium.control.state import State
from modelium.core import Phase
from modelium.units import GIB, format_bytes

RESERVE_SHARE = 0.1
LEAST_RESERVE_BYTES = 2 * GIB
PINNED_PER_WEIGHTS = 1.25
"""RAM that an engine takes while it falls asleep, and keeps, for each byte of weights: PyTorch pins
blocks of powers of two. 15 % more for Llama-3.1-8B, whose largest tensors are near such sizes."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """RAM at one moment."""

    total_bytes: int
    """What this machine or this container may use in all."""
    available_bytes: int
    """What can be taken without swapping: page cache counts as available."""


def read(groups: Path = Path("/proc/self")) -> HostMemory:
    """What the kernel says, within the limits of this process's control groups.

    `groups` is the folder with `cgroup` and `mountinfo`. Sources: proc_meminfo(5) (MemAvailable),
    the kernel's cgroup-v2 and memory controller documents.
    """
    return reader(groups)()


def reader(groups: Path = Path("/proc/self")) -> Callable[[], HostMemory]:
    """As `read`, for whoever reads again and again: which groups these are is found out once."""
    return partial(_read, tuple(_folders(groups)))


def _read(folders: Iterable[Path]) -> HostMemory:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, used in _limits(folders):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return HostMemory(total, available)


def reserve_bytes(total_bytes: int, given: int | None = None) -> int:
    """What stays free: as given, else a tenth of all, at least 2 GiB."""
    return max(LEAST_RESERVE_BYTES, round(RESERVE_SHARE * total_bytes)) if given is None else given


def for_weights(memory_bytes: float, reserve: int, going_bytes: int = 0) -> int:
    """Bytes of weights that such RAM can pin, besides those that are on their way into it."""
    return max(0, int((memory_bytes - reserve) / PINNED_PER_WEIGHTS) - going_bytes)


def in_words(memory: HostMemory, reserve: int, weights: int) -> str:
    """23.5 GiB of RAM, of which 2.4 GiB stay free: 16.9 GiB of weights can sleep in it."""
    total, free, most = map(format_bytes, (memory.total_bytes, reserve, weights))
    return f"{total} of RAM, of which {free} stay free: {most} of weights can sleep in it"


def _limits(folders: Iterable[Path]) -> Iterator[tuple[int, int]]:
    """(limit, in use) of the memory cgroups in these folders, where there are limits.

    Files that were read once are dropped when memory is short: they are not in use.
    """
    for folder in folders:
        limits = [
            size
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
            if (size := _number(folder / name)) is not None
        ]
        for used in ("memory.current", "memory.usage_in_bytes"):
            if limits and (size := _number(folder / used)) is not None:
                yield min(limits), size - _inactive_file(folder)


def _folders(groups: Path) -> Iterator[Path]:
    """This process's memory cgroup and those above it, of version 1 and of version 2."""
    paths: dict[str, str] = {}
    for line in _lines(groups / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(groups / "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, mounted = before.split(" ")[3:5]
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        own, top = Path(paths[kind]), Path(mounted)
        inner = own.relative_to(root) if own.is_relative_to(root) else Path()
        folder = top / inner
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").splitlines()
    return []


def _number(path: Path) -> int | None:
    """A file's number; None where there is none ("max")."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _inactive_file(folder: Path) -> int:
    """Of version 1, that of all groups below, too."""
    sizes = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
    return int(sizes.get("total_inactive_file", sizes.get("inactive_file", 0)))


class HostWatch:
    """Keeps the books' RAM for weights at what the machine has for them."""

    def __init__(self, state: State, reader: Callable[[], HostMemory] | None, reserve: int) -> None:
        """Without a `reader` (simulated GPUs) the configured RAM is believed."""
        self._state, self._reader, self._reserve = state, reader, reserve
        self._most = {name: ram.capacity_bytes for name, ram in state.ram.items()}

    def look(self) -> None:
        """Read RAM now: what is free of it can be pinned, besides what is on its way there."""
        if self._reader is None:
            return
        copies = self._state.instances.values()
        going = sum(copy.host_bytes for copy in copies if copy.phase is Phase.SUSPENDING)
        free = for_weights(self._reader().available_bytes, self._reserve, going)
        for name, ram in self._state.ram.items():
            ram.resize(min(self._most[name], ram.pinned_bytes + free))
