"""Request traces: who asked which model for how much, when. Importable as `modelium.traces`."""

if __name__ == "traces":  # this folder is the package modelium.traces
    raise ImportError("import modelium.traces, not traces")

from modelium.traces.check import check_models
from modelium.traces.generate import Bursts, Workload, generate, zipf_shares
from modelium.traces.info import Info, describe
from modelium.traces.lengths import Drawn, Lengths, Lognormal
from modelium.traces.native_format import write_trace
from modelium.traces.picture import draw_trace
from modelium.traces.read import read_trace
from modelium.traces.resample import resample, split
from modelium.traces.trace import Labels, Trace
from modelium.traces.transform import (
    cut,
    map_models,
    merge,
    sample,
    scale_rate,
    speed_up,
    spread,
    with_lengths,
)

__all__ = [
    "Bursts",
    "Drawn",
    "Info",
    "Labels",
    "Lengths",
    "Lognormal",
    "Trace",
    "Workload",
    "check_models",
    "cut",
    "describe",
    "draw_trace",
    "generate",
    "map_models",
    "merge",
    "read_trace",
    "resample",
    "sample",
    "scale_rate",
    "speed_up",
    "split",
    "spread",
    "with_lengths",
    "write_trace",
    "zipf_shares",
]
