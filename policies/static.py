"""A fixed placement: the floor that every other policy has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelium.core import ClusterState
from modelium.policies.toolkit.bin_packing import pack
from modelium.policies.toolkit.diff import Target
from modelium.policies.toolkit.placement import first_fit
from modelium.policies.toolkit.planned import Planned


class Static(Planned):
    """Load a fixed placement at the start and never change it; other models are not served.

    Misses wait for ever, or are rejected if admission says so. After a fault the same placement is
    restored. Without `placement` (given in Python), one copy of each model is packed by first fit
    decreasing.

    placement: the GPUs of each copy, by model.
    """

    answers_misses = False
    """Requests of models that have no place are left waiting on purpose."""

    def __init__(self, placement: Mapping[str, Sequence[Sequence[str]]] | None = None) -> None:
        self._placement = placement
        super().__init__(self._fixed, None)

    def _fixed(self, state: ClusterState) -> Target:
        if self._placement is None:
            return pack(state, {}, first_fit, 1.0)
        return {name: [tuple(gpus) for gpus in sets] for name, sets in self._placement.items()}
