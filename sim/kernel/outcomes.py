"""What became of each request, in one pass over the compiled world's arrays.

The run is over, so the answers are written over what only the kernels needed: a million requests
would take 33 MB more, and memory that the system has not given yet costs more than this pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.sim.jit.decorators import entry
from modelium.sim.kernel.arrays import COMPLETED, FAILED, REJECTED, UNFINISHED, World
from modelium.sim.kernel.infer import PS
from modelium.sim.kernel.world_pointer import world_at

OUTCOME_NAMES = {
    UNFINISHED: "unfinished",
    COMPLETED: "completed",
    REJECTED: "rejected",
    FAILED: "failed",
}
"""The world's outcomes in the words of the tables."""
OUTCOME_CODES = (3, 0, 1, 2)
"""Their places in OUTCOMES. Compiled in, so they are written down where an edit compiles anew."""


class Outcomes(NamedTuple):
    """Columns by request, in the types of `modelium.results.record.REQUEST_COLUMNS`."""

    outcome: NDArray[np.int32]  # of OUTCOMES
    instance: NDArray[np.int32]  # number - 1; below 0: none
    cold: NDArray[np.int32]  # of COLD
    cached: NDArray[np.int32]
    first_s: NDArray[np.float64]  # NaN if none came
    finish_s: NDArray[np.float64]  # NaN unless completed
    met: NDArray[np.bool_]  # all limits of its SLO


def answers(w: World, handle: int) -> Outcomes:
    """The end of the world `w`, which is at `handle`: its columns by request are used up."""
    _tell(handle)
    return Outcomes(
        outcome=w.slot_of,
        instance=w.instance,
        cold=w.requests.next_in_queue,
        cached=w.requests.cached,
        first_s=w.first_s,
        finish_s=w.finish_s,
        met=w.met,
    )


@entry
def _tell(handle):
    w = world_at(handle)
    for r in range(w.met.shape[0]):
        completed = w.outcome[r] == COMPLETED
        if np.isnan(w.answer_s[r]):
            begun = w.requests.first_ps[r] >= 0
            first_s, finish_s = w.requests.first_ps[r] / PS, w.requests.finish_ps[r] / PS
        else:  # in one piece
            begun = completed
            first_s = finish_s = w.answer_s[r]
        first_s = first_s if begun else np.nan
        finish_s = finish_s if completed else np.nan
        slo = w.slo[w.requests.model[r], w.slo_class[r]]
        gaps = max(w.requests.output[r] - 1, 1)
        w.first_s[r], w.finish_s[r] = first_s, finish_s
        w.met[r] = (
            first_s - w.arrival_s[r] <= slo[0]
            and finish_s - w.arrival_s[r] <= slo[2]
            and not (finish_s - first_s) / gaps > slo[1]
        )
        w.slot_of[r] = OUTCOME_CODES[w.outcome[r]]
        w.instance[r] -= 1
        w.requests.next_in_queue[r] = w.cold[r]
        w.requests.cached[r] = max(w.requests.cached[r], 0)
