"""How much of their KV pools the engines really used, by time bin."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
from numpy.typing import NDArray

from modelium.control.state import Copy, State
from modelium.sim.kernel.generate_state import Engines
from modelium.units import PS_PER_S, ps

if TYPE_CHECKING:
    from modelium.results.record import Column


class KvUtilization:
    """Reads the engines' integrals of held tokens at the end of each bin and of each instance.

    Sums are kept by cell: a GPU and a model, in the order of their names.
    """

    def __init__(
        self, env: simpy.Environment, state: State, engines: Engines, width_s: float
    ) -> None:
        self._env, self._state = env, state
        self._width_s = width_s
        self._since_s = 0.0
        self._models = state.models
        self._total = engines.engines["kv_token_ps"]
        self._lives = engines.counters.data
        self._seen = np.zeros_like(self._total)
        self._gpu_names, self._model_names = sorted(state.all_gpus), sorted(self._models)
        self._row = {name: k * len(self._model_names) for k, name in enumerate(self._gpu_names)}
        self._column = {name: k for k, name in enumerate(self._model_names)}
        self._sums = np.zeros(len(self._gpu_names) * len(self._model_names) + 1)
        """The last is nobody's."""
        width = max((model.gpus for model in self._models.values()), default=1)
        self._cells = np.full((len(self._total), width), -1)
        """Of each slot, one for each of its GPUs."""
        self._share_bytes = np.zeros(len(self._total))
        """Of each slot, a token's on each of its GPUs."""
        self._bins: list[tuple[float, float, NDArray[np.int64], NDArray[np.float64]]] = []

    def watch(self) -> Generator[Any, Any, None]:
        """The SimPy process that ends the bins."""
        while True:
            yield self._env.timeout(max(1, ps(self._width_s)))
            self.end_bin()

    def enter(self, copy: Copy) -> None:
        """An instance is there, whose engine begins at zero."""
        gpus, column = copy.gpus, self._column[copy.model]
        nobodys = [-1] * (self._cells.shape[1] - len(gpus))
        self._cells[copy.slot] = [self._row[gpu] + column for gpu in gpus] + nobodys
        self._share_bytes[copy.slot] = self._models[copy.model].kv_bytes_per_token / len(gpus)

    def forget(self, copy: Copy) -> None:
        """The instance is gone: book its last use."""
        slot = copy.slot
        if (used := float(self._total[slot] - self._seen[slot])) > 0:
            held = used / PS_PER_S * self._share_bytes[slot]
            for cell in self._cells[slot].tolist():
                self._sums[cell] += held
        self._seen[slot] = self._total[slot] = 0.0

    def end_bin(self) -> None:
        """Keep the means of the bin that ends now."""
        if self._lives[0]:  # else no engine has held a token yet
            slots = np.flatnonzero(self._total > self._seen)
            token_s = (self._total[slots] - self._seen[slots]) / PS_PER_S
            self._seen[slots] = self._total[slots]
            held = token_s * self._share_bytes[slots]
            # In the order of the slots, and a cell may be there more than once.
            np.add.at(self._sums, self._cells[slots], held[:, None])
        start_s, end_s = self._since_s, self._state.now_s
        if end_s > start_s and len(used := np.flatnonzero(self._sums[:-1])):
            self._bins.append((start_s, end_s, used, self._sums[used] / (end_s - start_s)))
        self._sums[:] = 0.0
        self._since_s = end_s

    def columns(self) -> dict[str, Column]:
        """What was kept, as in the timeline's table."""
        starts, ends, used, means = zip(*self._bins, strict=True) if self._bins else [()] * 4
        lengths = [len(cells) for cells in used]
        cells = np.concatenate([np.empty(0, np.int64), *used])
        none = np.zeros(len(cells), np.int32)
        return {
            "gpu": (cells // len(self._model_names), self._gpu_names),
            "start_s": np.repeat(starts, lengths),
            "end_s": np.repeat(ends, lengths),
            "kind": (none, ["kv_used"]),
            "model": (cells % len(self._model_names), self._model_names),
            "instance": (none, [""]),
            "value": np.concatenate([np.empty(0), *means]),
        }
