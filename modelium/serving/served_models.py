"""The models that can be served: those of the configuration, and those of the repository."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from modelium.analyze import analyze
from modelium.config import Config, Plan
from modelium.config.planning.engines import Engines
from modelium.config.planning.live import live_input, served
from modelium.config.planning.plan import with_model
from modelium.config.schema import ModelEntry
from modelium.core import Model
from modelium.errors import ConfigError, ModeliumError, ProfileError
from modelium.live.settings import LiveInput, Served
from modelium.repository import ModelRepository, StoredModel
from modelium.serving.launch_spec import LaunchSpec
from modelium.units import format_seconds

ASSUMED_ANSWER_S = 0.01
"""What one answer takes of a GPU where nothing tells: policies weigh models by it. `models` in the
configuration knows better."""


@dataclass(frozen=True)
class _Known:
    """All models, and what is known of them, at one moment."""

    config: Config
    plan: Plan
    stored: frozenset[str] = frozenset()
    """Models that come from the repository."""
    notes: tuple[str, ...] = ()

    @cached_property
    def engines(self) -> Engines:
        """How fast they are."""
        return Engines(self.plan.models, self.plan.hardware.by_kind())

    def noted(self, note: str) -> _Known:
        """With a note, which is made once."""
        return self if note in self.notes else replace(self, notes=(*self.notes, note))

    def entered(self, stored: StoredModel) -> _Known:
        """With a model of the repository as it is now. Raises ModeliumError."""
        name = stored.name
        if name in self.config.models and name not in self.stored:
            return self.renewed(name)  # what the configuration says of it goes first
        given: dict[str, Any] = {"path": stored.path}
        assumed = ""
        if not self.config.emulated.enabled:
            given["runtime"] = stored.runtime
        if not _shape_is_known(self.config.repository / stored.path):
            given |= {"weights": max(1, stored.weights_bytes)}
            given |= {"infer": {"latency": [ASSUMED_ANSWER_S]}}
            assumed = f"its files do not tell its speed: {format_seconds(ASSUMED_ANSWER_S)} assumed"
        models = {**self.config.models, name: ModelEntry.of(given)}
        known = replace(self, config=replace(self.config, models=models)).renewed(name)
        known = replace(known, stored=known.stored | {name})
        return known.noted(f"{name}: {assumed}") if assumed else known

    def renewed(self, name: str) -> _Known:
        """With a model as its files are now. Raises ConfigError."""
        if name not in self.config.models:
            raise ConfigError(f"{name} was removed")
        return replace(self, plan=with_model(self.plan, self.config, name))

    def without(self, name: str) -> _Known:
        """Without a model, of which the plan and its figures stay while copies may need them."""
        models = {key: entry for key, entry in self.config.models.items() if key != name}
        config = replace(self.config, models=models)
        return replace(self, config=config, stored=self.stored - {name})


class ServedModels:
    """Knows every model, also those that come while the server runs. For several threads."""

    def __init__(self, order: LaunchSpec, plan: Plan) -> None:
        """`order.config` with the hardware that `plan` was made for."""
        self._emulate = order.emulate
        self.repository = _repository(order.config)
        self.sleeps = True
        """The policy may put engines to sleep."""
        self._need: Callable[[str], None] = lambda runtime: None
        self._lock = threading.Lock()
        """For an exchange of what is known only: the event loop waits for it, too."""
        known = _Known(order.config, plan)
        for stored in self.repository.list_models() if self.repository else ():
            if stored.name in known.config.models:
                continue
            try:
                known = known.entered(stored)
            except ModeliumError as error:
                known = known.noted(f"{stored.name} is not served: {error}")
        self._known = known

    def given(self, need: Callable[[str], None]) -> LiveInput:
        """What the cluster begins with; `need` is asked for the runtime of each model.

        A runtime that is not there ends it for the configuration's own models; those of the
        repository, which came by themselves, are left out, and a note says so. Raises ConfigError.
        """
        known = self._known
        given = live_input(known.config, known.plan, emulate=self._emulate, sleeps=self.sleeps)
        self._need = need
        there = []
        for one in given.served:
            try:
                need(one.runtime)
                there.append(one)
            except ConfigError as error:
                if one.model.name not in known.stored:
                    raise
                known = known.noted(f"{one.model.name} is not served: {error}")
        self._known = known
        return replace(given, served=there, work=self.work_s, renew=self.renew)

    @property
    def plan(self) -> Plan:
        """Everything that is served now."""
        return self._known.plan

    @property
    def notes(self) -> list[str]:
        """What had to be assumed, and what is not served."""
        return list(self._known.notes)

    @property
    def stored_names(self) -> list[str]:
        """Models that come from the repository."""
        return sorted(self._known.stored)

    def add(self, stored: StoredModel) -> Served:
        """A model that has come into the repository. Raises ModeliumError, OSError."""
        return self._analyse(stored.name, lambda known: known.entered(stored))

    def renew(self, name: str) -> Served:
        """A model as its files are now, analysed anew; from any thread. Raises ModeliumError."""
        if self.repository is not None and name in self._known.stored:
            return self.add(self.repository.renew_model(name))
        return self._analyse(name, lambda known: known.renewed(name))

    def remove(self, name: str) -> None:
        """A model is served no more; its files go if the repository holds them."""
        if self.repository and any(name == one.name for one in self.repository.list_models()):
            self.repository.remove_model(name)
        with self._lock:
            self._known = self._known.without(name)

    def become(self, other: ServedModels) -> None:
        """Know what another one knows: that of a configuration which was read later."""
        with self._lock:
            self._known, self._need, self.sleeps = other._known, other._need, other.sleeps

    def work_s(self, model: Model, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that one request takes of one of the copy's GPUs at a good batch size."""
        return self._known.engines.work_s(model, gpu, prompt_tokens, output_tokens)

    def _analyse(self, name: str, change: Callable[[_Known], _Known]) -> Served:
        """Change what is known; again, if something else has changed it meanwhile."""
        while True:
            before, need, sleeps = self._known, self._need, self.sleeps
            after = change(before)
            one = served(
                after.config, after.plan, after.engines, name,
                emulate=self._emulate, sleeps=sleeps,
            )  # fmt: skip
            need(one.runtime)
            with self._lock:
                if self._known is before:
                    self._known = after
                    return one


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
