"""The command line and the environment of one vLLM server."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelium.managers import environment
from modelium.managers.engine import Order

CPU_KV_BYTES = 256 << 20
"""KV pool on CPUs if nobody says how large: vLLM would take nearly all of the machine's memory."""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "INFO",  # stages and causes are read from the log
    "VLLM_SERVER_DEV_MODE": "1",  # sleep, wake, and an end with streams in flight
}
"""Models are folders: nothing is fetched from anywhere, and nothing reported."""
ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""By default each server binds its threads to the same cores as the others."""
_OURS = ("env", "flags")
"""Settings that are not flags of vLLM by their names."""


def is_cpu_build(program: Path) -> bool:
    """Whether this vLLM was built for CPUs: it has no sleep mode, no graphs, no GPU's memory."""
    version = environment.distribution(program, "vllm") or ""
    return "cpu" in version or environment.distribution(program, "vllm-cpu") is not None


def command(program: Path, order: Order, host: str, port: int, *, cpu: bool) -> list[str]:
    """What starts the server of `order`; the order's own settings and flags win over ours."""
    settings = {key: value for key, value in order.settings.items() if key not in _OURS}
    if len(order.devices) > 1:
        settings.setdefault("tensor_parallel_size", len(order.devices))
    for key, value in _memory(order, cpu=cpu).items():
        settings.setdefault(key, value)
    if order.can_sleep and not cpu:
        settings.setdefault("enable_sleep_mode", True)
    words = [str(program), "serve", str(order.path), "--host", host, "--port", str(port)]
    words += ["--served-model-name", order.model, "--disable-uvicorn-access-log"]
    for key, value in _numbers_of_bits(settings).items():
        words += _flag(key, value)
    return [*words, *map(str, order.settings.get("flags", ()))]


def variables(
    program: Path, order: Order, common: Mapping[str, str], *, cpu: bool
) -> dict[str, str]:
    """Its environment; `common` and the order's `env` win over ours, but not over its devices."""
    own = environment.variables(program)
    own.pop("VLLM_CPU_KVCACHE_SPACE", None)  # wins over the flag, and is for one server only
    given = {name: str(value) for name, value in order.settings.get("env", {}).items()}
    devices = environment.gpus(order.uuids, order.devices)
    return {**own, **QUIET, **(ON_CPU if cpu else {}), **common, **given, **devices}


def _memory(order: Order, *, cpu: bool) -> dict[str, Any]:
    """The share of the GPU that vLLM may take, and of that the KV pool.

    vLLM refuses to start unless the whole share is free, also where the size of the KV pool is
    given; with its default of 92 % a second engine on a GPU never starts. Rounded down: shares of
    engines side by side must not add up to more than there is.
    """
    flags: dict[str, Any] = {}
    kv_bytes = order.kv_bytes_per_gpu
    if cpu:
        kv_bytes = kv_bytes or CPU_KV_BYTES
    elif order.bytes_per_gpu and order.memory_bytes:
        share = order.bytes_per_gpu / order.memory_bytes
        flags["gpu_memory_utilization"] = max(0.0001, math.floor(min(share, 1.0) * 1e4) / 1e4)
    if kv_bytes:
        flags["kv_cache_memory_bytes"] = kv_bytes
    return flags


def _numbers_of_bits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of 8 or 4 bits: a way of quantizing to vLLM, or a fact of the files, but no dtype."""
    narrow = settings.get("dtype")
    if narrow not in ("fp8", "int8", "int4"):
        return dict(settings)
    rest = {key: value for key, value in settings.items() if key != "dtype"}
    return {"quantization": "fp8", **rest} if narrow == "fp8" else rest


def _flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
