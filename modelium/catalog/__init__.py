"""Facts about GPUs and models, each with its source, and what follows from them."""

from modelium.catalog.architecture import Architecture
from modelium.catalog.fleet import Fleet, fleet_nodes, parse_fleet
from modelium.catalog.generations import DriverFacts, assumed, corrected, device_spec, kind_of, note
from modelium.catalog.gpus import GpuSpec, gpu, gpus
from modelium.catalog.models import ModelSpec, model, models
from modelium.catalog.serving import (
    DEFAULT_KV_TOKENS,
    DEFAULT_SLO,
    BatchLimits,
    core_model,
    overhead_bytes,
    tensor_parallel_size,
    tensor_parallel_sizes,
)

__all__ = [
    "DEFAULT_KV_TOKENS",
    "DEFAULT_SLO",
    "Architecture",
    "BatchLimits",
    "DriverFacts",
    "Fleet",
    "GpuSpec",
    "ModelSpec",
    "assumed",
    "core_model",
    "corrected",
    "device_spec",
    "fleet_nodes",
    "gpu",
    "gpus",
    "kind_of",
    "model",
    "models",
    "note",
    "overhead_bytes",
    "parse_fleet",
    "tensor_parallel_size",
    "tensor_parallel_sizes",
]
