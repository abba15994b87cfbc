"""What was measured corrects what was predicted: memory that copies take, seconds that loads take.

Both are kept in the journal, by model (and kind of GPU), so that the next run begins with them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from modelium.control.costs import LoadFacts, StagedCosts, Work
from modelium.core import ClusterState, Costs, Model, Tier
from modelium.live.records.journal import Journal, JournalError

LATEST = 1 / 3
"""Weight of the latest measurement in the running mean."""


@dataclass
class Calibration:
    """Measured needs and durations."""

    journal: Journal
    needs: dict[tuple[str, str], int]
    durations: dict[tuple[str, str], float]
    asleep: dict[tuple[str, str], int]

    @classmethod
    def read(cls, journal: Journal) -> Calibration:
        """What earlier runs have learnt."""
        return cls(journal, journal.needs(), journal.durations(), journal.asleep())

    def took(self, model: str, what: str, seconds: float) -> None:
        """A load from `what` (host, disk) or a wake (sleep-1, sleep-2) took this long."""
        before = self.durations.get((model, what), seconds)
        mean = before + LATEST * (seconds - before)
        self.durations[model, what] = mean
        with contextlib.suppress(JournalError):  # counted there; learnt again next time
            self.journal.learnt_duration(model, what, mean)

    def needs_bytes(self, model: str, gpu_kind: str, bytes_per_gpu: int) -> None:
        """A copy was seen to take this much of each of its GPUs."""
        self.needs[model, gpu_kind] = bytes_per_gpu
        with contextlib.suppress(JournalError):
            self.journal.learnt_need(model, gpu_kind, bytes_per_gpu)

    def asleep_bytes(self, model: str, gpu_kind: str, bytes_per_gpu: int) -> None:
        """A sleeping copy was seen to keep this much of each of its GPUs."""
        self.asleep[model, gpu_kind] = bytes_per_gpu
        with contextlib.suppress(JournalError):
            self.journal.learnt_asleep(model, gpu_kind, bytes_per_gpu)

    def forget(self, model: str) -> None:
        """What was learnt is of no use: the next model of this name may be another one."""
        self.needs = {key: need for key, need in self.needs.items() if key[0] != model}
        self.asleep = {key: kept for key, kept in self.asleep.items() if key[0] != model}
        self.durations = {key: mean for key, mean in self.durations.items() if key[0] != model}
        with contextlib.suppress(JournalError):
            self.journal.forget_learnt(model)

    def corrected(self, model: Model, gpu_kinds: set[str]) -> Model:
        """The model with the overhead that makes it as large as it was seen to be, and with what
        it was seen to keep asleep.

        With several kinds of GPU the largest figure counts: a model has one size for a policy.
        """
        if kept := self._largest(self.asleep, model.name, gpu_kinds):
            model = replace(model, asleep_bytes=kept)
        if seen := self._largest(self.needs, model.name, gpu_kinds):
            rest = model.bytes_per_gpu() - model.overhead_bytes
            model = replace(model, overhead_bytes=max(0, seen - rest))
        return model

    @staticmethod
    def _largest(seen: dict[tuple[str, str], int], model: str, gpu_kinds: set[str]) -> int:
        """0 where nothing was measured on these kinds."""
        return max((seen.get((model, kind), 0) for kind in gpu_kinds), default=0)


class CalibratedCosts:
    """`Costs` as measured where they were, else by stages."""

    def __init__(
        self, state: ClusterState, facts: LoadFacts, work: Work, learnt: Calibration
    ) -> None:
        self._state, self._facts, self._work, self._learnt = state, facts, work, learnt
        self._staged = StagedCosts(state, facts, work)

    def for_state(self, state: ClusterState) -> Costs:
        """The same figures read against another state (a snapshot)."""
        return CalibratedCosts(state, self._facts, self._work, self._learnt)

    def load_s(self, model: str, gpus: tuple[str, ...]) -> float:
        """Seconds to load `model` on `gpus` from its present tier."""
        tier = self._state.source_tier(model, self._state.gpus[gpus[0]].node)
        seen = self._learnt.durations.get((model, tier.value))
        if seen is None and tier is Tier.HOST:
            seen = self._learnt.durations.get((model, Tier.DISK.value))
        return self._staged.load_s(model, gpus) if seen is None else seen

    def wake_s(self, instance: str) -> float:
        """Seconds until a sleeping instance is ready."""
        copy = self._state.instances[instance]
        seen = self._learnt.durations.get((copy.model, f"sleep-{copy.sleep_level}"))
        return self._staged.wake_s(instance) if seen is None else seen

    def sleep_s(self, instance: str, level: int) -> float:
        """Seconds until a sleeping instance's memory is free."""
        return self._staged.sleep_s(instance, level)

    def unload_s(self, instance: str) -> float:
        """Seconds until an unloaded instance's memory is free."""
        return self._staged.unload_s(instance)

    def work_s(self, model: str, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that one request takes of one of the copy's GPUs at a good batch size."""
        return self._staged.work_s(model, gpu, prompt_tokens, output_tokens)
