"""What differs between two configurations, and what of it a running server cannot take up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from modelium.config.schema import Config
from modelium.config.values import Section

RESTART = (
    "cluster",
    "emulated",
    "gateway.grpc_port",
    "gateway.host",
    "gateway.port",
    "live.allow_pickle",
    "live.folder",
    "live.host_reserve",
    "live.stall",
    "metrics",
    "model_repository",
    "orchestration.max_gpu_memory_utilization",
    "ray",
    "simulation.rate_window",
    "simulation.router",
    "triton",
    "vllm.base_port",
    "vllm.enabled",
    "vllm.env",
    "vllm.environment",
)
"""Sections and keys that are read at the start only: GPUs, sockets, folders, engines' homes."""


def differences(old: Section, new: Section) -> list[str]:
    """The keys that differ, as in the file: "gateway.max_wait", "models.chat.kv"."""
    return [".".join(path) for path in _differing(old, new)]


def needs_restart(old: Config, new: Config) -> list[str]:
    """Which of the differing keys only a restart takes up."""
    return [key for key in differences(old, new) if _below(key, RESTART)]


def keeping(old: Config, new: Config) -> Config:
    """The new configuration, but for what only a restart takes up: that is as in the old one."""
    for key in RESTART:
        new = _with(new, key.split("."), old)
    return new


def _differing(old: Any, new: Any) -> Iterator[tuple[str, ...]]:
    if old == new:
        return
    if isinstance(old, Section) and type(old) is type(new):
        names = [field.name for field in dataclasses.fields(old)]  # type: ignore[arg-type]
        pairs = {name.removesuffix("_"): (getattr(old, name), getattr(new, name)) for name in names}
    elif _of_sections(old) and _of_sections(new):
        pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    else:
        yield ()
        return
    for name, (before, after) in pairs.items():
        for rest in _differing(before, after):
            yield (name, *rest)


def _of_sections(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, Section) for v in value.values())


def _below(key: str, heads: tuple[str, ...]) -> bool:
    return any(key == head or key.startswith(f"{head}.") for head in heads)


def _with(new: Any, path: list[str], old: Any) -> Any:
    """`new` with the value that `old` has at a path."""
    name, *rest = path
    value = getattr(old, name)
    if rest:
        value = _with(getattr(new, name), rest, value)
    return dataclasses.replace(new, **{name: value})
