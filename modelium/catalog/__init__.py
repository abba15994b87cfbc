"""Facts about GPUs and models, each with its source, and what follows from them."""

from modelium.catalog.architecture import Architecture
from modelium.catalog.fleet import Fleet, parse_fleet
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
    "Fleet",
    "GpuSpec",
    "ModelSpec",
    "core_model",
    "gpu",
    "gpus",
    "model",
    "models",
    "overhead_bytes",
    "parse_fleet",
    "tensor_parallel_size",
    "tensor_parallel_sizes",
]
