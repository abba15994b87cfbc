"""Best fit decreasing: the bin-packing baseline that fills GPUs up."""

from __future__ import annotations

from typing import Any

from modelium.policies.toolkit.packed import Packed
from modelium.policies.toolkit.placement import best_fit


class Bfd(Packed):
    """Pack copies by decreasing size, each on the fullest GPU with room for its bytes and its load.

    Source: Johnson et al., SIAM J. Computing 3(4), 1974.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(best_fit, **options)
