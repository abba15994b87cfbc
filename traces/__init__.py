"""Request traces: who asked which model for how much, when. Importable as `modelium.traces`."""

if __name__ == "traces":  # this folder is the package modelium.traces
    raise ImportError("import modelium.traces, not traces")

from modelium.traces.trace import Trace

__all__ = ["Trace"]
