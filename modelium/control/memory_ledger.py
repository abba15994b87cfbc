"""Who really holds GPU memory at each moment: loads wait here until what leaves has left.

The state (`modelium.control.state`) counts promises, so that a policy may say "unload a, load b" at
once; this ledger counts bytes that are there. It never lets a GPU hold more than it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelium.core import Gpu
from modelium.errors import ModeliumError


@dataclass(slots=True, eq=False)
class Wanted:
    """One wish for memory; `granted` is called when it is taken."""

    gpus: tuple[str, ...]
    bytes_per_gpu: int
    granted: Callable[[], object]


class MemoryLedger:
    """Bytes held per GPU, and the loads that wait for some, first come first served per GPU."""

    def __init__(self, gpus: Mapping[str, Gpu]) -> None:
        self._capacity = {name: gpu.memory_bytes for name, gpu in gpus.items()}
        self.held = dict.fromkeys(gpus, 0)
        self._queue: list[Wanted] = []

    def take(
        self, gpus: tuple[str, ...], bytes_per_gpu: int, granted: Callable[[], object]
    ) -> Wanted:
        """Call `granted` as soon as `bytes_per_gpu` are there, and taken, on each of `gpus`."""
        wanted = Wanted(gpus, bytes_per_gpu, granted)
        self._queue.append(wanted)
        self._grant()
        return wanted

    def give(self, gpus: tuple[str, ...], bytes_per_gpu: int) -> None:
        """Give back `bytes_per_gpu` on each of `gpus`."""
        for gpu in gpus:
            self.held[gpu] -= bytes_per_gpu
            if self.held[gpu] < 0:
                raise ModeliumError(f"{gpu} gave back more memory than it held")
        self._grant()

    def resize(self, gpu: str, memory_bytes: int) -> None:
        """Others took memory of a GPU, or gave some back."""
        self._capacity[gpu] = memory_bytes
        self._grant()

    def withdraw(self, wanted: Wanted) -> bool:
        """Stop waiting; True if it was still waited for, False if it has been taken."""
        before = len(self._queue)
        self._queue = [other for other in self._queue if other is not wanted]
        return len(self._queue) < before

    def _grant(self) -> None:
        blocked: set[str] = set()
        still, granted = [], []
        for wanted in self._queue:
            if blocked.isdisjoint(wanted.gpus) and self._fits(wanted):
                for gpu in wanted.gpus:
                    self.held[gpu] += wanted.bytes_per_gpu
                granted.append(wanted)
            else:
                blocked.update(wanted.gpus)
                still.append(wanted)
        self._queue = still
        for wanted in granted:
            wanted.granted()

    def _fits(self, wanted: Wanted) -> bool:
        return all(
            self.held[gpu] + wanted.bytes_per_gpu <= self._capacity[gpu] for gpu in wanted.gpus
        )
