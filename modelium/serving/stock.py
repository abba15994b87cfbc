"""The models that can be served: those of the configuration, and those of the repository."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelium.analyze import analyze
from modelium.config import Config, Plan
from modelium.config.engines import Engines
from modelium.config.liveplan import live_input, served
from modelium.config.plan import with_model
from modelium.config.schema import ModelEntry
from modelium.core import Model
from modelium.errors import ConfigError, ModeliumError, ProfileError
from modelium.live.given import LiveInput, Served
from modelium.repository import ModelRepository, StoredModel
from modelium.serving.order import Order
from modelium.units import format_seconds

ASSUMED_ANSWER_S = 0.01
"""What one answer takes of a GPU where nothing tells: policies weigh models by it. `models` in the
configuration knows better."""


class Stock:
    """Knows every model, also those that come while the server runs."""

    def __init__(self, order: Order, plan: Plan) -> None:
        """`order.config` with the hardware that `plan` was made for."""
        self._config, self._plan, self._emulate = order.config, plan, order.emulate
        self.repository = _repository(order.config)
        self.notes: list[str] = []
        self.sleeps = True
        """The policy may put engines to sleep."""
        self._stored: set[str] = set()
        """Models that come from the repository."""
        self._need: Callable[[str], None] = lambda runtime: None
        self._lock = threading.Lock()
        for stored in self.repository.list_models() if self.repository else ():
            if stored.name in self._config.models:
                continue
            try:
                self._enter(stored)
            except ModeliumError as error:
                self.notes.append(f"{stored.name} is not served: {error}")
        self._engines = Engines(self._plan.models, self._plan.hardware.by_kind())

    def given(self, need: Callable[[str], None]) -> LiveInput:
        """What the cluster begins with; `need` is asked for the runtime of each model.

        A runtime that is not there ends it for the configuration's own models; those of the
        repository, which came by themselves, are left out, and a note says so. Raises ConfigError.
        """
        given = live_input(self._config, self._plan, emulate=self._emulate, sleeps=self.sleeps)
        self._need = need
        there = []
        for one in given.served:
            try:
                need(one.runtime)
                there.append(one)
            except ConfigError as error:
                if one.model.name not in self._stored:
                    raise
                self.notes.append(f"{one.model.name} is not served: {error}")
        return replace(given, served=there, work=self.work_s, renew=self.renew)

    @property
    def plan(self) -> Plan:
        """Everything that is served now."""
        return self._plan

    def add(self, stored: StoredModel) -> Served:
        """A model that has come into the repository. Raises ModeliumError."""
        with self._lock:
            self._enter(stored)
            return self._served(stored.name)

    def renew(self, name: str) -> Served:
        """A model as its files are now, analysed anew; from any thread. Raises ModeliumError."""
        stored = None
        if self.repository is not None and name in self._stored:
            stored = self.repository.renew_model(name)  # may wait for other processes
        with self._lock:
            if stored is not None:
                self._enter(stored)
            else:
                self._plan = with_model(self._plan, self._config, name)
            return self._served(name)

    def remove(self, name: str) -> None:
        """A model is served no more; its files go if the repository holds them."""
        if self.repository and any(name == one.name for one in self.repository.list_models()):
            self.repository.remove_model(name)
        with self._lock:
            models = {key: entry for key, entry in self._config.models.items() if key != name}
            self._config = replace(self._config, models=models)

    @property
    def stored(self) -> list[str]:
        """Models that come from the repository."""
        return sorted(self._stored)

    def become(self, other: Stock) -> None:
        """Know what another one knows: that of a configuration which was read later."""
        with self._lock:
            self._config, self._plan, self._stored = other._config, other._plan, set(other._stored)
            self._engines, self._need = other._engines, other._need
            self.sleeps, self.notes = other.sleeps, other.notes

    def work_s(self, model: Model, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that one request takes of one of the copy's GPUs at a good batch size."""
        return self._engines.work_s(model, gpu, prompt_tokens, output_tokens)

    def _enter(self, stored: StoredModel) -> None:
        models = {**self._config.models, stored.name: self._entry(stored)}
        config = replace(self._config, models=models)
        self._plan = with_model(self._plan, config, stored.name)
        self._config = config
        self._stored.add(stored.name)

    def _served(self, name: str) -> Served:
        self._engines = Engines(self._plan.models, self._plan.hardware.by_kind())
        one = served(
            self._config, self._plan, self._engines, name,
            emulate=self._emulate, sleeps=self.sleeps,
        )  # fmt: skip
        self._need(one.runtime)
        return one

    def _entry(self, stored: StoredModel) -> ModelEntry:
        """What the configuration would say of a model in the repository."""
        given: dict[str, Any] = {"path": stored.path}
        if not self._config.emulated.enabled:
            given["runtime"] = stored.runtime
        if not _shape_is_known(self._config.repository / stored.path):
            given |= {"weights": max(1, stored.weights_bytes)}
            given |= {"infer": {"latency": [ASSUMED_ANSWER_S]}}
            assumed = f"its files do not tell its speed: {format_seconds(ASSUMED_ANSWER_S)} assumed"
            self.notes.append(f"{stored.name}: {assumed}")
        return ModelEntry.of(given)


def _shape_is_known(folder: Path) -> bool:
    try:
        return analyze(folder).spec is not None
    except ProfileError:
        return False  # code alone


def _repository(config: Config) -> ModelRepository | None:
    """The repository, if the configuration names one."""
    if config.model_repository is None:
        return None
    return ModelRepository(config.repository, allow_pickle=config.live.allow_pickle)
