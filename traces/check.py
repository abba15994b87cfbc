"""Checks of a trace against what else the user said."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from modelium.errors import TraceError, did_you_mean
from modelium.traces.trace import Trace


def check_models(trace: Trace, known: Collection[str], source: str = "") -> None:
    """Raise TraceError for the first request of a model that is not among `known`.

    The message names file and row; rows are counted in order of arrival. `source` is where the
    known ones are listed.
    """
    strange = np.array([name not in known for name in trace.model.names], bool)
    rows = np.flatnonzero(strange[trace.model.codes])
    if not len(rows):
        return
    name = trace.model.names[trace.model.codes[rows[0]]]
    listed = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "")
    hint = did_you_mean(name, known) or f" Known models are: {listed}."
    others = int(strange.sum()) - 1
    are = "model is" if others == 1 else "models are"
    more = f" ({others} more {are} unknown, too.)" if others else ""
    row, where = int(rows[0]) + 1, f" in {source}" if source else ""
    raise TraceError(f"{trace.source}, row {row:,}: no model called {name!r}{where}.{hint}{more}")
