"""Request traces: who asked which model for how much, when. Importable as `modelium.traces`."""

if __name__ == "traces":  # this folder is the package modelium.traces
    raise ImportError("import modelium.traces, not traces")

from modelium.traces.generate import Bursts, Workload, generate, zipf_shares
from modelium.traces.lengths import Drawn, Lognormal
from modelium.traces.own import write_trace
from modelium.traces.read import read_trace
from modelium.traces.trace import Labels, Trace

__all__ = [
    "Bursts",
    "Drawn",
    "Labels",
    "Lognormal",
    "Trace",
    "Workload",
    "generate",
    "read_trace",
    "write_trace",
    "zipf_shares",
]
