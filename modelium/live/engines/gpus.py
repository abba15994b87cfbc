"""What GPUs there are and what they hold: from NVML, or simulated where there are none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Protocol

import psutil

from modelium.catalog import DriverFacts, device_spec
from modelium.core import Gpu
from modelium.errors import ConfigError
from modelium.managers.identity import Process, runs


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment."""

    device: int
    """Where it is in the list. A GPU has the driver's index when it was first seen and keeps it;
    MIG instances come after all GPUs."""
    uuid: str
    """The driver's name for it, of which engines are told; empty while nobody could read it."""
    name: str
    """What the driver calls it."""
    kind: str
    """Its name in the catalogue, or one like those; empty while nobody could read it."""
    total_bytes: int = 0
    free_bytes: int = 0
    processes: Mapping[int, int] = field(default_factory=dict)
    """Bytes by process id, other people's too; 0 where the driver does not tell."""
    utilisation: float | None = None
    """Share of the last sampling period in which it computed; None if it is not measured."""
    lost: str = ""
    """Why it cannot be used; empty if it works. The other figures are then 0."""
    number: str = ""
    """The driver's index when it was first seen, such as "2"; of a MIG instance "2:0"."""
    parent: str = ""
    """UUID of the GPU that a MIG instance is a part of; empty for a whole GPU."""
    facts: DriverFacts = field(default_factory=DriverFacts)
    """What else the driver told when it was first seen; of a MIG instance, about the whole GPU."""

    @property
    def used_bytes(self) -> int:
        """Everything that is not free: processes, and what the driver keeps for itself."""
        return self.total_bytes - self.free_bytes


class Inventory(Protocol):
    """Reads GPUs; safe to call from several threads."""

    @property
    def pretend(self) -> bool:
        """No real GPUs: memory is what `hold` was told."""

    def read(self) -> dict[int, Reading]:
        """All GPUs by device, lost ones too. May block for some milliseconds; never raises."""

    def hold(self, process: Process, device: int, size_bytes: int) -> None:
        """Say what a process holds on a GPU from now on; real GPUs know better and ignore it."""


class PretendInventory:
    """GPUs that exist in the configuration only; their memory is what processes said they hold.

    It counts while the process lives: a simulated GPU gives memory back when an engine dies.
    """

    pretend = True

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        """`gpus` by device number, from 0."""
        self._gpus = list(gpus)
        self._held: dict[tuple[Process, int], int] = {}
        """Bytes by process and device."""
        self._lock = threading.Lock()

    def read(self) -> dict[int, Reading]:
        with self._lock:
            for key in [key for key in self._held if not runs(key[0])]:
                del self._held[key]
            held: list[dict[int, int]] = [{} for _ in self._gpus]
            for (process, device), size_bytes in self._held.items():
                held[device][process.pid] = size_bytes
        return {
            device: Reading(
                device=device,
                uuid=f"pretend-{gpu.id}",
                name=gpu.kind or gpu.id,
                kind=gpu.kind,
                total_bytes=gpu.memory_bytes,
                free_bytes=gpu.memory_bytes - sum(held[device].values()),
                processes=held[device],
            )
            for device, gpu in enumerate(self._gpus)
        }

    def hold(self, process: Process, device: int, size_bytes: int) -> None:
        if not 0 <= device < len(self._gpus):
            raise ConfigError(f"no GPU {device}: the configuration simulates {len(self._gpus)}")
        with self._lock:
            self._held.pop((process, device), None)
            if size_bytes:
                self._held[process, device] = size_bytes


class NvmlInventory:
    """GPUs as NVIDIA's driver tells of them. A driver that fails is asked anew at each read.

    A GPU keeps the device number under which it was first seen, whatever the driver calls it
    after a restart. One in MIG mode is not listed, but its instances are. Source: NVML API
    reference.
    """

    pretend = False

    def __init__(self) -> None:
        """Raises ConfigError where there is no driver or no GPU."""
        import pynvml

        self._nvml: ModuleType = pynvml
        self._lock = threading.Lock()
        self._started = False
        self._known: dict[str, Reading] = {}
        """Each GPU as first seen, by uuid, without figures."""
        self.without_instances: tuple[str, ...] = ()
        """Numbers of the GPUs in MIG mode that have no instances: nothing can run there."""
        try:
            found = self._read()
        except pynvml.NVMLError as error:
            raise ConfigError(
                f"no NVIDIA GPU can be read: {error}. Install the driver, or name"
                " simulated GPUs in the configuration"
            ) from None
        if not found and not self.without_instances:
            raise ConfigError("NVIDIA's driver runs, but it has no GPU")

    def read(self) -> dict[int, Reading]:
        with self._lock:
            try:
                return self._read()
            except self._nvml.NVMLError as error:
                self._stop()
                why = f"driver: {error}"
                return {gpu.device: _without(gpu, why) for gpu in self._known.values()}

    def hold(self, process: Process, device: int, size_bytes: int) -> None:
        """Nothing to do: the driver knows."""

    def _read(self) -> dict[int, Reading]:
        if not self._started:
            self._nvml.nvmlInit()
            self._started = True
        readings: dict[int, Reading] = {}
        why = "the driver lists it no longer"
        count, without = self._nvml.nvmlDeviceGetCount(), []
        for index in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                if self._in_mig_mode(handle):
                    instances = list(self._read_instances(index, handle, count))
                    readings.update((reading.device, reading) for reading in instances)
                    without += [] if instances else [str(index)]
                    continue
                reading = self._read_one(index, handle)
            except self._nvml.NVMLError as error:
                why = str(error)
                lost = Reading(index, "", "unknown", "", number=str(index))
                self._known.setdefault(f"index {index}", lost)
            else:
                readings[reading.device] = reading
        self.without_instances = tuple(without)
        self._forget_placeholders()
        if len(readings) < len(self._known):
            self._stop()  # one that was repaired is seen after a new start only
        for known in self._known.values():
            readings.setdefault(known.device, _without(known, why))
        return dict(sorted(readings.items()))

    def _read_one(self, index: int, handle: Any) -> Reading:
        nvml = self._nvml
        uuid = nvml.nvmlDeviceGetUUID(handle)
        known = self._known.get(uuid) or self._meet(index, uuid, nvml.nvmlDeviceGetName(handle))
        return self._figures(known, handle, handle)

    def _read_instances(self, index: int, parent: Any, count: int) -> Iterator[Reading]:
        """The MIG instances of a GPU; their numbers have gaps where some were destroyed."""
        nvml, parent_uuid = self._nvml, self._nvml.nvmlDeviceGetUUID(parent)
        for instance in range(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, instance)
            except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
                continue
            uuid = nvml.nvmlDeviceGetUUID(handle)
            if uuid not in self._known:
                device = max([count - 1, *(known.device for known in self._known.values())]) + 1
                number, name = f"{index}:{instance}", nvml.nvmlDeviceGetName(handle)
                if any(number == known.number for known in self._known.values()):
                    number = str(device)
                self._known[uuid] = Reading(
                    device, uuid, name, "", number=number, parent=parent_uuid
                )
            yield self._figures(self._known[uuid], handle, parent)

    def _figures(self, known: Reading, handle: Any, whole: Any) -> Reading:
        total_bytes, free_bytes = self._memory(handle)
        if not known.kind:
            facts = self._facts(whole)
            kind = device_spec(known.name, total_bytes, facts).name
            known = self._known[known.uuid] = replace(known, kind=kind, facts=facts)
        return replace(
            known,
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            processes=self._processes(handle),
            utilisation=None if known.parent else self._utilisation(handle),
        )

    def _memory(self, handle: Any) -> tuple[int, int]:
        """Total and free bytes; the machine's where the GPU has no memory of its own (GB10).

        Source: NVIDIA DGX Spark User Guide, known issues ("Memory-Usage: Not Supported").
        """
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError_NotSupported:
            machine = psutil.virtual_memory()
            return machine.total, machine.available
        return int(memory.total), int(memory.free)

    def _facts(self, handle: Any) -> DriverFacts:
        """What tells how fast a GPU is that the catalogue does not know."""
        nvml = self._nvml

        def told(ask: Callable[..., Any], *what: int) -> Any:
            with self._optional():
                return ask(handle, *what)
            return 0

        return DriverFacts(
            compute_capability=told(nvml.nvmlDeviceGetCudaComputeCapability) or (0, 0),
            memory_bus_bits=told(nvml.nvmlDeviceGetMemoryBusWidth),
            memory_clock_hz=1e6 * told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
            cores=told(nvml.nvmlDeviceGetNumGpuCores),
            sm_clock_hz=1e6 * told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        )

    def _in_mig_mode(self, handle: Any) -> bool:
        """Old drivers do not know the question, most GPUs do not have the mode."""
        with self._optional():
            current, _ = self._nvml.nvmlDeviceGetMigMode(handle)
            return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)
        return False

    def _meet(self, index: int, uuid: str, name: str) -> Reading:
        """A GPU that was not seen before; its index may have been another's."""
        taken = {known.device for known in self._known.values() if known.uuid}
        device = index if index not in taken else max(taken) + 1
        self._known[uuid] = Reading(device, uuid, name, "", number=str(device))
        return self._known[uuid]

    def _forget_placeholders(self) -> None:
        """A GPU that was lost when first listed is known by its uuid once it is back."""
        met = {known.device for known in self._known.values() if known.uuid}
        for key in [key for key, r in self._known.items() if not r.uuid and r.device in met]:
            del self._known[key]

    def _processes(self, handle: Any) -> dict[int, int]:
        """A process that computes and draws is in both of the driver's lists."""
        held: dict[int, int] = {}
        nvml = self._nvml
        for listing in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            with self._optional():
                for process in listing(handle):
                    size_bytes = process.usedGpuMemory or 0
                    held[process.pid] = max(size_bytes, held.get(process.pid, 0))
        return held

    def _utilisation(self, handle: Any) -> float | None:
        with self._optional():
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        return None

    def _optional(self) -> contextlib.suppress:
        """Figures that some GPUs or drivers do not have, or do not tell everybody."""
        nvml = self._nvml
        return contextlib.suppress(
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_NoPermission,
        )

    def _stop(self) -> None:
        self._started = False
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _without(known: Reading, why: str) -> Reading:
    return replace(known, lost=why)
