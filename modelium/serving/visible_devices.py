"""Which of the GPUs that the driver lists the environment lets Modelium use.

CUDA_VISIBLE_DEVICES means what it means to CUDA: numbers or UUIDs (or their beginnings), a list
that ends at its first wrong entry, and an empty list that hides all. Source: CUDA C++ Programming
Guide, CUDA Environment Variables. NVIDIA_VISIBLE_DEVICES is for container runtimes, which have
mostly heeded it already: then the driver lists no more GPUs than it names. Source: NVIDIA
Container Toolkit, "Specialized Configurations with Docker".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelium.config.planning.devices import UUIDS, GpuName, by_driver_name
from modelium.errors import ConfigError
from modelium.units import counted

CUDA = "CUDA_VISIBLE_DEVICES"
CONTAINER = "NVIDIA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"


def visible(
    gpus: Sequence[GpuName], environ: Mapping[str, str]
) -> tuple[list[GpuName], tuple[str, ...]]:
    """The GPUs that may be used, and what there is to say about the others."""
    notes: list[str] = []
    left = list(gpus)
    for variable, read in ((CONTAINER, _for_containers), (CUDA, _for_cuda)):
        if (given := environ.get(variable)) is None:
            continue
        kept, said = read(left, given)
        out = [gpu.number for gpu in left if gpu not in kept]
        if out:
            notes.append(f"{variable}={given} leaves out {counted(len(out), 'GPU')}: {_list(out)}")
        notes += said
        left = kept
    given = environ.get(CUDA, "")
    by_number = any(word.strip().isdigit() for word in given.split(","))
    if by_number and environ.get(ORDER) != BY_BUS and len({gpu.kind for gpu in gpus}) > 1:
        notes.append(
            f"{CUDA}={given} is read in the driver's order, as nvidia-smi has it, but CUDA counts"
            f" the fastest GPU first unless {ORDER}={BY_BUS}; UUIDs are clear to both"
        )
    return left, tuple(notes)


def _for_cuda(gpus: Sequence[GpuName], given: str) -> tuple[list[GpuName], list[str]]:
    kept: list[GpuName] = []
    words = [word.strip() for word in given.split(",")] if given.strip() else []
    for place, word in enumerate(words):
        try:
            found = by_driver_name(word, gpus)
            why = "names no GPU"
        except ConfigError as error:
            found, why = [], str(error)
        if not found:
            rest = len(words) - place - 1
            more = f", and so are the {rest} after it" if rest else ""
            told = f"{CUDA}: {word!r} {why}; it is left out{more}, as CUDA does"
            return kept, [] if word == "-1" else [told]
        kept += [gpu for gpu in found if gpu not in kept]
    return kept, []


def _for_containers(gpus: Sequence[GpuName], given: str) -> tuple[list[GpuName], list[str]]:
    words = [word.strip() for word in given.split(",") if word.strip()]
    if words == ["none"]:
        return [], []
    if not words or words in (["all"], ["void"]):  # void: the devices were given in another way
        return list(gpus), []
    whole = {gpu.parent or gpu.id for gpu in gpus}
    if len(whole) <= len(words) and not all(word.startswith(UUIDS) for word in words):
        return list(gpus), []  # the numbers are the host's; in the container they are others
    kept: list[GpuName] = []
    missing = []
    for word in words:
        try:
            found = by_driver_name(word, gpus)
        except ConfigError:
            found = []
        kept += [gpu for gpu in found if gpu not in kept]
        missing += [] if found else [word]
    told = f"{CONTAINER}: the driver lists no {', '.join(missing)}"
    return kept, [told] if missing else []


def _list(numbers: Sequence[str]) -> str:
    return ", ".join(numbers)
