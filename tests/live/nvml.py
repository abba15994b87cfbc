"""A fake NVIDIA driver for tests: a library of our own under the real pynvml."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

GIB = 1 << 30
LOST = 15
"""NVML_ERROR_GPU_IS_LOST."""
MOST_INSTANCES = 7
"""An A100 or H100 can be cut into so many."""


def build(folder: Path) -> Path:
    """Compile the library into `folder`; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    command += ["-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class Facts:
    """What the driver tells of a GPU besides its memory; 0: it does not."""

    compute_capability: str = "0.0"
    bus_bits: int = 0
    memory_mhz: int = 0
    sm_mhz: int = 0
    cores: int = 0

    @property
    def words(self) -> str:
        """As the library reads them."""
        figures = f"{self.bus_bits} {self.memory_mhz} {self.sm_mhz} {self.cores}"
        return f"{self.compute_capability} {figures}"


class FakeDriver:
    """What the library says; `write` after each change."""

    def __init__(self, folder: Path, *names: str, total_bytes: int = 80 * GIB) -> None:
        self.library = build(folder)
        self.state = folder / "nvml.txt"
        self.loaded = True
        self.names = list(names)
        self.uuids = [f"GPU-{i:04x}" for i in range(len(names))]
        self.total_bytes = total_bytes
        self.totals: dict[int, int] = {}
        """Of some GPUs, instead; 0: not told."""
        self.facts: dict[int, Facts] = {}
        """By GPU; of the others the driver tells none."""
        self.reserved_bytes = 0
        """What the driver keeps for itself on each GPU."""
        self.status = [0] * len(names)
        self.percent = [0] * len(names)
        self.processes: list[tuple[int | tuple[int, int], int, int, str]] = []
        """(GPU, process id, bytes, "c" or "g"); -1 bytes: not told. Of an instance: (GPU, slot)."""
        self.instances: dict[int, dict[int, tuple[str, int, str]]] = {}
        """GPUs in MIG mode: by slot their instances' UUIDs, bytes and names."""
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that shall see this driver."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKE_NVML_STATE": str(self.state),
        }

    def write(self) -> None:
        """Make it so, for every process that looks from now on."""
        lines = ["driver 550.54"] if self.loaded else []
        for i, name in enumerate(self.names):
            used = sum(max(n, 0) for gpu, _, n, _ in self.processes if gpu == i)
            total = self.totals.get(i, self.total_bytes)
            figures = f"{total} {used + self.reserved_bytes} {self.percent[i]}"
            lines.append(f"gpu {i} {self.status[i]} {figures} {self.uuids[i]} {name}")
        lines += [f"facts {gpu} {facts.words}" for gpu, facts in self.facts.items()]
        for i, instances in self.instances.items():
            lines.append(f"mig {i} {MOST_INSTANCES}")
            for slot, (uuid, total, name) in instances.items():
                used = sum(max(n, 0) for gpu, _, n, _ in self.processes if gpu == (i, slot))
                lines.append(f"instance {i} {slot} {total} {used} {uuid} {name}")
        for gpu, pid, n, kind in self.processes:
            where = f"proc {gpu}" if isinstance(gpu, int) else f"instanceproc {gpu[0]} {gpu[1]}"
            lines.append(f"{where} {pid} {n} {kind}")
        fresh = self.state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fresh.replace(self.state)
