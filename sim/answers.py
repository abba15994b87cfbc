"""What became of each request, in one pass over the compiled world's arrays."""

from __future__ import annotations

import numpy as np

from modelium.sim.books import COMPLETED
from modelium.sim.handle import world_at
from modelium.sim.infer import PS
from modelium.sim.jit import entry


@entry
def answers(handle):
    """Fill in when the first and last token came (s; NaN where none did), and who met the SLO."""
    w = world_at(handle)
    first, finish, met = w.first_s, w.finish_s, w.met
    for r in range(first.shape[0]):
        completed = w.outcome[r] == COMPLETED
        if np.isnan(w.answer_s[r]):
            begun = w.requests.first_ps[r] >= 0
            first_s, last_s = w.requests.first_ps[r] / PS, w.requests.finish_ps[r] / PS
        else:  # in one piece
            begun = completed
            first_s = last_s = w.answer_s[r]
        first[r] = first_s if begun else np.nan
        finish[r] = last_s if completed else np.nan
        slo = w.slo[w.requests.model[r], w.slo_class[r]]
        gaps = max(w.requests.output[r] - 1, 1)
        met[r] = (
            first[r] - w.arrival_s[r] <= slo[0]
            and finish[r] - w.arrival_s[r] <= slo[2]
            and not (finish[r] - first[r]) / gaps > slo[1]
        )
