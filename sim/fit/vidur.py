"""Steps from a log of Vidur's batches (https://github.com/microsoft/vidur, MIT; arXiv 2405.05465).

A folder has `batches.csv`, a row a batch: `prefill_tokens, n_prefill, prefill_ctx_tokens, n_decode,
decode_kv_tokens, iter_ms`. The context of several prefills is known in sum only; it is taken to be
spread evenly over the prefill tokens, which is exact for one prefill.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modelium.sim.fit.form import Steps
from modelium.sim.fit.tables import column, read_csv

NAMES = (
    "n_decode",
    "decode_kv_tokens",
    "prefill_tokens",
    "n_prefill",
    "prefill_ctx_tokens",
    "iter_ms",
)


def steps(folder: Path) -> Steps:
    """Every batch of the log as one step. Raises ProfileError where the log cannot be read."""
    file = folder / "batches.csv"
    rows = read_csv(file)
    decode, kv, tokens, prefills, context, ms = (column(rows, name, file) for name in NAMES)
    each = np.maximum(prefills, 1)
    return Steps(
        decode, kv, tokens, prefills, tokens * context / each, tokens * tokens / each, ms * 1e-3
    )
