"""What differs between two configurations, and what of it a running server cannot take up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
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
    return [key for key in differences(old, new) if _below(key, _fixed(old, new))]


def keeping(old: Config, new: Config) -> Config:
    """The new configuration, but for what only a restart takes up: that is as in the old one."""
    kept: Config = _with(new, old, [key.split(".") for key in _fixed(old, new)])
    return kept


def _fixed(old: Config, new: Config) -> list[str]:
    """What only a restart takes up: KServe's gRPC is told once how to listen, as the rest is."""
    keys, before, after = list(RESTART), old.gateway, new.gateway
    if before.grpc_port is not None:
        keys.append("gateway.max_body")
        if (before.tls_certificate is None) != (after.tls_certificate is None):
            keys += ["gateway.tls_certificate", "gateway.tls_key"]
    return keys


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


def _below(key: str, heads: Iterable[str]) -> bool:
    return any(key == head or key.startswith(f"{head}.") for head in heads)


def _with(new: Any, old: Any, paths: list[list[str]]) -> Any:
    """`new` with the values that `old` has at some paths, all at once: some go together only."""
    values = {}
    for name in {path[0] for path in paths}:
        below, value = [path[1:] for path in paths if path[0] == name], getattr(old, name)
        values[name] = value if [] in below else _with(getattr(new, name), value, below)
    return dataclasses.replace(new, **values)
