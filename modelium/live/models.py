"""The models that are served now; they come, change and go while the cluster runs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from modelium.control.state import Copy
from modelium.core import Model
from modelium.live.records.journal import JournalError
from modelium.live.settings import Served

if TYPE_CHECKING:
    from modelium.live.context import LiveContext
    from modelium.live.engines.model_files import WatchedFiles

PINS = "pins"
"""The journal's setting with the models that an operator has pinned (true) or unpinned (false)."""


class ModelRegistry:
    """Models by name, with their sizes as measured and their pins as operators want them."""

    def __init__(self, cluster: LiveContext, files: WatchedFiles) -> None:
        self._cluster = cluster
        self._files = files
        self.served = cluster.served
        self._pins: dict[str, bool] = cluster.journal.kept(PINS, {})

    def put(self, served: Served) -> None:
        """Serve a model from now on, or serve it otherwise from its next load on."""
        name = served.model.name
        self.served[name] = served
        self._cluster.dispatcher.most_running[name] = served.max_num_seqs
        self._files.analysed(name)
        self._cluster.failures.forget(name)
        self.correct(name)

    def close(self, name: str) -> None:
        """A model is about to be dropped: it takes no more requests."""
        why = f"{name} is being removed"
        self._cluster.dispatcher.going[name] = why
        self.correct(name)
        self._cluster.dispatcher.refuse_all(name, 503, why)

    def reopen(self, name: str) -> None:
        """A model that was closed is not dropped: it is served as before."""
        self._cluster.dispatcher.going.pop(name, None)
        self.correct(name)

    def drop(self, name: str) -> None:
        """Serve a model no more; all its copies must have gone. Another one may get its name."""
        self._cluster.dispatcher.refuse_all(name, 404, f"{name} was removed")
        self._cluster.state.drop_model(name)
        self._cluster.dispatcher.forget(name)
        self._cluster.dispatcher.going.pop(name, None)
        self._cluster.learnt.forget(name)
        self._cluster.failures.forget(name)
        self._pins = {other: pin for other, pin in self._pins.items() if other != name}
        with contextlib.suppress(JournalError):  # counted there
            self._cluster.journal.keep(PINS, self._pins)
        self._files.drop(name)
        del self.served[name]

    def pin(self, name: str, pinned: bool) -> None:
        """Keep a model loaded whatever the policy thinks, or no longer; outlives a restart."""
        self._pins = {**self._pins, name: pinned}
        self._cluster.journal.keep(PINS, self._pins)
        self.correct(name)

    def correct(self, name: str) -> None:
        """Use what was measured, and what operators want, in the next decision."""
        if name in self.served:
            given = self.served[name].model
            pinned, least = self._pins.get(name, given.pinned), given.min_replicas
            if name in self._cluster.dispatcher.going:
                pinned, least = False, 0  # else policies would load it again
            kinds = {gpu.kind for gpu in self._cluster.state.all_gpus.values()}
            corrected = self._cluster.learnt.corrected(given, kinds)
            self._set(replace(corrected, pinned=pinned, min_replicas=least))

    def needs_more(self, copy: Copy) -> None:
        """It ran out of memory: ask for a tenth more, so that the policy makes more room."""
        model = self._cluster.state.models[copy.model]
        more = copy.bytes_per_gpu // 10
        self._set(replace(model, overhead_bytes=model.overhead_bytes + more))

    def _set(self, model: Model) -> None:
        self._cluster.state.put_model(model, self._cluster.dispatcher.demand(model.name))
