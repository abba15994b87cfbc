"""Managers by hand: models by their names, one instance each, as the original project had them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelium.errors import did_you_mean
from modelium.managers.engine import Engine, EngineError, Order, Progress, StartError

DRAIN_S = 60.0
"""How long `unload_model` waits for requests in flight."""
GRACE_S = 10.0
LOOK_S = 0.2


class ByName(ABC):
    """`load_model`, `unload_model`, `get_model_endpoint` over a manager's `start` and `stop`."""

    grace_s = GRACE_S
    """How long an end may take before it is forced."""

    def __init__(self) -> None:
        self._loaded: dict[str, Engine] = {}

    @abstractmethod
    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        """Bring up an instance; see `modelium.managers.engine.Manager`."""

    @abstractmethod
    def stop(self, engine: Engine, grace_s: float = GRACE_S) -> None:
        """End an instance; see `modelium.managers.engine.Manager`."""

    @abstractmethod
    def in_flight(self, engine: Engine) -> bool:
        """Whether it works on requests. Raises EngineError if it does not say."""

    def load_model(
        self, name: str, path: str | Path, gpu_id: int | Sequence[int] = 0, **settings: Any
    ) -> Engine:
        """Serve the model in the folder `path`; return when it has answered a first request.

        `settings` are the runtime's own, such as max_model_len=4096 for vLLM. Raises StartError.
        """
        if name in self._loaded:
            raise StartError(f"{name} is loaded already")
        devices = (gpu_id,) if isinstance(gpu_id, int) else tuple(gpu_id)
        engine = self.start(Order(name, name, Path(path), devices, settings=settings))
        self._loaded[name] = engine
        return engine

    def unload_model(self, name: str, graceful: bool = True) -> None:
        """End it: with `graceful` after its requests, otherwise at once. Raises EngineError."""
        engine = self._named(name)
        until_s = time.monotonic() + DRAIN_S
        with suppress(EngineError):
            while graceful and time.monotonic() < until_s and self.in_flight(engine):
                time.sleep(LOOK_S)
        self.stop(engine, self.grace_s if graceful else 0.0)
        self._loaded.pop(name, None)

    def get_model_endpoint(self, name: str) -> str:
        """Base address of its server. Raises EngineError."""
        return self._named(name).url

    def _named(self, name: str) -> Engine:
        if engine := self._loaded.get(name):
            return engine
        raise EngineError(f"{name} is not loaded.{did_you_mean(name, self._loaded)}")
