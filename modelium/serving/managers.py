"""A manager for each runtime, as configured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.config import Config
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.managers.engine import Manager


class Managers(dict[str, "Manager"]):
    """Managers by runtime, each made when the first model needs it."""

    def __init__(self, config: Config, folder: Path) -> None:
        """`folder` keeps logs and whatever the runtimes' own servers need."""
        super().__init__()
        self._config, self._folder = config, folder.resolve()
        self._lock = threading.Lock()

    def need(self, runtime: str) -> None:
        """Have a manager for this runtime; from any thread.

        Raises ConfigError if it is disabled or not there.
        """
        with self._lock:
            if runtime not in self:
                self[runtime] = _MAKERS[runtime](self._config, self._folder / runtime)


def _emulated(config: Config, folder: Path) -> Manager:
    from modelium.managers import EmulatedManager

    manager: Manager = EmulatedManager(folder=folder, speed=config.emulated.speed)
    return manager


def _vllm(config: Config, folder: Path) -> Manager:
    from modelium.managers import VLLMManager

    if not config.vllm.enabled:
        raise ConfigError("vllm.enabled is false, but a model needs vLLM; name another `runtime`")
    manager: Manager = VLLMManager(
        base_port=config.vllm.base_port,
        environment=_path(config.vllm.environment),
        folder=folder,
        env=config.vllm.env,
        stall_s=config.live.stall,
    )
    return manager


def _triton(config: Config, folder: Path) -> Manager:
    from modelium.managers import TritonManager

    given = config.triton
    if not given.enabled:
        raise ConfigError("triton.enabled is false, but a model needs Triton; name another runtime")
    manager: Manager = TritonManager(
        given.url,
        _path(given.repository),
        grpc=given.grpc,
        environment=_path(given.environment),
        folder=folder,
        env=given.env,
        stall_s=config.live.stall,
    )
    return manager


def _ray(config: Config, folder: Path) -> Manager:
    from modelium.managers import RayManager

    given = config.ray
    if not given.enabled:
        raise ConfigError("ray.enabled is false, but a model needs Ray; name another `runtime`")
    manager: Manager = RayManager(
        address=given.address,
        environment=_path(given.environment),
        folder=folder,
        env=given.env,
        stall_s=config.live.stall,
    )
    return manager


_MAKERS = {"emulated": _emulated, "vllm": _vllm, "triton": _triton, "ray": _ray}


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
