"""What Ray is told for an order: the model, its deployment, and where its replica runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelium.managers import environment, settings
from modelium.managers.engine import Order, StartError

DRAIN_S = 10.0
"""A replica that is deleted has so long for its requests; who wants it sooner kills it."""
THREADS = 4
"""Answers of a language model that are made at the same time; others wait."""
_OF_REPLICA = ("args", "dtype", "trust_remote_code", "max_model_len")
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Wanted:
    """One application."""

    model: Mapping[str, Any]
    """For the replica."""
    deployment: Mapping[str, Any]
    actor: Mapping[str, Any]
    """Ray's options of the replica's process, and `slots`: resources that may stand for a GPU."""
    plain: bool
    """A class of the user's, which takes any JSON."""


def read(order: Order, *, ours: bool = True) -> Wanted:
    """Say in Ray's words what is to be served. Raises StartError for a wrong setting.

    A Ray of ours is on this machine, so that UUIDs name its GPUs. The nodes of a cluster that
    somebody else runs (`ours` is False) may be others, and count their own GPUs: numbers.
    """
    given = dict(order.settings)
    if found := settings.problem("ray", given):
        raise StartError(f"{order.model}: {found[1]}", final=True)
    own = given.get("class")
    if own is None and order.path is not None and (order.path / "model.py").is_file():
        own = ""
    model = {name: given[name] for name in _OF_REPLICA if name in given}
    model |= {"name": order.model, "path": str(order.path), "class": own}
    model |= {"gpus": len(order.devices), "threads": given.get("threads", THREADS)}
    if order.bytes_per_gpu and order.memory_bytes:
        model["memory_share"] = min(1.0, order.bytes_per_gpu / order.memory_bytes)
    mig = any(uuid.startswith("MIG-") for uuid in order.uuids)  # those have no number of their own
    variables = {
        **_QUIET,
        **{name: str(value) for name, value in given.get("env", {}).items()},
        **environment.gpus(order.uuids if ours or mig else (), order.devices),
    }
    deployment = {
        "num_replicas": 1,
        "max_ongoing_requests": given.get("max_ongoing_requests", 1000),
        "graceful_shutdown_timeout_s": DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 2.0,
        "max_constructor_retry_count": 1,  # what failed once fails again
    }
    actor = {
        "num_cpus": 0,
        "num_gpus": 0,  # Ray chooses GPUs itself; which one is for Modelium to say
        "runtime_env": {"env_vars": variables},
        "slots": [f"gpu_slot_{device}" for device in order.devices[:1]],
    }
    return Wanted(model, deployment, actor, plain=own is not None)
