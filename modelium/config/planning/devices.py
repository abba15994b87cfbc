"""Naming GPUs as operators do: by number, UUID or its beginning, kind, or Modelium's own id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelium import catalog
from modelium.errors import ConfigError, did_you_mean

UUIDS = ("GPU-", "MIG-")
"""How the driver's names begin."""


@dataclass(frozen=True, slots=True)
class GpuName:
    """The names of one GPU."""

    id: str
    """Modelium's own: "gpu" and its number."""
    number: str
    """The driver's index: "2"; of a MIG instance "2:0"."""
    kind: str = ""
    uuid: str = ""
    """Empty where there is none: in simulation, or while a GPU is lost."""
    parent: str = ""
    """UUID of the GPU that a MIG instance is a part of."""

    def has(self, word: str) -> bool:
        """Whether `word` is its number or begins its UUID, or those of the GPU it is a part of."""
        if word.startswith(UUIDS):
            return self.uuid.startswith(word) or self.parent.startswith(word)
        return word in (self.number, self.number.partition(":")[0])


def by_driver_name(word: str, gpus: Iterable[GpuName]) -> list[GpuName]:
    """The GPUs that an index or UUID names: one, or all MIG instances of one; none if it is wrong.

    Raises ConfigError for the beginning of several GPUs' UUIDs.
    """
    found = [gpu for gpu in gpus if gpu.has(word)]
    exact = [gpu for gpu in found if word in (gpu.uuid, gpu.parent)]
    if word.startswith(UUIDS) and not exact and len({_whole(gpu) for gpu in found}) > 1:
        told = ", ".join(gpu.uuid for gpu in found)
        raise ConfigError(f"{word!r} begins the UUIDs of several GPUs: {told}. Give more of it")
    return exact or found


def find(word: str, gpus: Sequence[GpuName]) -> list[GpuName]:
    """The GPUs that `word` names in any way. Raises ConfigError if it names none, or is unclear."""
    kind = catalog.kind_of(word)
    if of_kind := [gpu for gpu in gpus if gpu.kind == kind]:
        return of_kind
    if found := [gpu for gpu in gpus if word in (gpu.id, gpu.kind)]:
        return found
    if found := by_driver_name(word, gpus):
        return found
    known = [name for gpu in gpus for name in (gpu.id, gpu.uuid, gpu.kind) if name]
    numbers = ", ".join(gpu.number for gpu in gpus)
    hint = did_you_mean(word, known) or f" There are GPUs {numbers}."
    raise ConfigError(f"no GPU is called {word!r}.{hint}")


def find_all(words: Iterable[str], gpus: Sequence[GpuName]) -> list[GpuName]:
    """The GPUs that any of `words` names, each once, in their own order. Raises ConfigError."""
    named = {gpu.id for word in words for gpu in find(word, gpus)}
    return [gpu for gpu in gpus if gpu.id in named]


def _whole(gpu: GpuName) -> str:
    return gpu.parent or gpu.uuid
