"""What the integer programme is told: a cluster's state and a forecast, in whole numbers.

The unit of value is a request that would be late. A model without a ready copy makes requests late
when somebody asks for it: the first one waits the whole start, those that follow what is left of
it. So a ready copy is worth the chance that anybody comes within the horizon, times the requests
that such a start would make late; what a change costs is that worth for as long as it takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modelium.core import AWAKE, ClusterState, Instance, Model, Phase
from modelium.policies.ilp.problem import MICRO, PARTS, Fate, Held, Problem, Room, Want
from modelium.policies.toolkit.eviction import least_copies
from modelium.policies.toolkit.forecast import Forecast
from modelium.policies.toolkit.least_loss import Leaver
from modelium.units import MIB

TPOT_S = 0.05
"""Time between tokens where a model has no SLO for it: sizes the KV pool."""


@dataclass(frozen=True, slots=True)
class Aims:
    """What a plan is to achieve."""

    horizon_s: float
    """How far it looks ahead."""
    busy_max: float
    """Share of a GPU's time that may be planned for."""
    crowd_share: float
    """Of requests for which there is no compute or KV memory, the share that will be late."""
    move_per_s: float
    """Requests that each second of loading, waking, sleeping or unloading costs beside its delay:
    it takes bandwidth from others."""
    patience_s: float
    """Wait after which a request counts as late where its model has no TTFT SLO."""
    kv_least: float
    """Smallest KV pool of a new copy, as a share of the model's own."""
    kv_headroom: float
    """KV pool over what the forecast needs on average."""
    sleep: bool
    """Plans may put copies to sleep (level 1)."""


class View:
    """Reads one state for one plan, or for one decision between plans."""

    def __init__(self, state: ClusterState, aims: Aims, forecast: Forecast) -> None:
        self.state, self.aims, self._forecast = state, aims, forecast

    def rate_per_s(self, model: str) -> float:
        """Arrivals to expect."""
        return max(self._forecast.rate_per_s(self.state, model, self.aims.horizon_s), 0.0)

    def late(self, model: str, start_s: float) -> float:
        """Requests within the horizon that are late if `model` starts in `start_s` when missed.

        A wait of w counts as min(1, w/T) of a late request, T being the TTFT SLO.
        """
        rate = self.rate_per_s(model)
        slo_s = self.state.models[model].slo.ttft_s
        limit_s = slo_s if math.isfinite(slo_s) else self.aims.patience_s
        short_s = min(start_s, limit_s)
        followers_s = start_s - short_s + short_s * short_s / (2 * limit_s)
        return -math.expm1(-rate * self.aims.horizon_s) * (short_s / limit_s + rate * followers_s)

    def leaver(self, copy: Instance) -> Leaver:
        """What each way of making room with this idle copy would lose, in late requests."""
        state, costs = self.state, self.state.costs
        others = [c for c in state.instances_of(copy.model) if c.id != copy.id]
        if any(other.phase in AWAKE for other in others):
            return Leaver(copy, 0.0)
        spec, node = state.models[copy.model], state.gpus[copy.gpus[0]].node
        unload_loss = self.late(copy.model, costs.load_s(copy.model, copy.gpus))
        if copy.phase is Phase.ASLEEP:
            return Leaver(copy, unload_loss - self.late(copy.model, costs.wake_s(copy.id)))
        sleeps = self.aims.sleep and spec.can_sleep
        if not sleeps or state.host_free_bytes(node) < spec.weights_bytes:
            return Leaver(copy, unload_loss)
        # Weights come back by the way they went.
        sleep_loss = self.late(copy.model, costs.sleep_s(copy.id, 1))
        return Leaver(copy, unload_loss, sleep_loss, max(0, copy.bytes_per_gpu - spec.asleep_bytes))

    def kv_bytes(self, model: str) -> int:
        """KV pool that a new copy should have, over all its GPUs."""
        spec, asked = self.state.models[model], self.state.demand[model]
        least = math.ceil(self.aims.kv_least * spec.kv_bytes)
        if not asked.arrivals:
            return least
        rate = max(self.rate_per_s(model), asked.request_rate_per_s)
        output = asked.output_tokens / asked.arrivals
        tokens = asked.prompt_tokens / asked.arrivals + output
        tpot_s = spec.slo.tpot_s if math.isfinite(spec.slo.tpot_s) else TPOT_S
        needed = rate * output * tpot_s * tokens * spec.kv_bytes_per_token
        return min(max(least, math.ceil(self.aims.kv_headroom * needed)), spec.kv_bytes)

    # The programme's numbers

    def problem(self) -> Problem:
        """Everything, as whole numbers."""
        state = self.state
        wants = tuple(self._wants())
        held = tuple(self._held())
        work = sum(max(want.work.values(), default=0) for want in wants)
        served = sum(want.part_value * PARTS for want in wants)
        resting = dict.fromkeys(state.nodes, 0)
        for copy in state.instances.values():
            if copy.host_bytes and copy.gpus[0] in state.gpus:
                resting[state.gpus[copy.gpus[0]].node] += copy.host_bytes
        return Problem(
            rooms=tuple(
                Room(gpu.id, gpu.node, gpu.memory_bytes // MIB, gpu.kind)
                for gpu in state.gpus.values()
            ),
            wants=wants,
            held=held,
            host_mib={
                node: (state.host_free_bytes(node) + resting[node]) // MIB for node in state.nodes
            },
            busy_max=round(1000 * self.aims.busy_max),
            overload_cost=served // work if work else 0,
        )

    def _wants(self) -> Iterator[Want]:
        for model in self.state.models.values():
            rate = self.rate_per_s(model.name)
            if rate > 0 or least_copies(model) or any(self.state.instances_of(model.name)):
                yield self._want(model, rate)

    def _want(self, model: Model, rate: float) -> Want:
        state, aims = self.state, self.aims
        load_s = self._load_s(model)
        ready = self.late(model.name, min(load_s.values(), default=0.0))
        wake_s = [self._wake_s(copy) for copy in state.instances_of(model.name)]
        asleep = ready - self.late(model.name, min(wake_s)) if wake_s else 0.0
        price = aims.move_per_s + ready / aims.horizon_s
        work = self._work(model, rate)
        kinds_most = max(work.values(), default=0) / (1000 * aims.busy_max)
        return Want(
            model=model.name,
            fixed_mib=_ceil_mib(model.bytes_per_gpu(0)),
            gpus=model.gpus,
            kv_min_mib=_ceil_mib(math.ceil(aims.kv_least * model.kv_bytes) / model.gpus),
            kv_full_mib=self.kv_bytes(model.name) // model.gpus // MIB,
            ready_value=round(MICRO * ready),
            asleep_value=round(MICRO * max(asleep, 0.0)),
            part_value=round(MICRO * aims.crowd_share * rate * aims.horizon_s / PARTS),
            work=work,
            load_cost={node: round(MICRO * price * s) for node, s in load_s.items()},
            least=least_copies(model),
            most=min(model.max_replicas, max(least_copies(model), math.ceil(kinds_most) + 1)),
            spread=model.spread,
            allowed=model.gpus_allowed,
        )

    def _work(self, model: Model, rate: float) -> dict[str, int]:
        asked = self.state.demand[model.name]
        if not asked.arrivals or rate <= 0:
            return {}
        prompt, output = asked.prompt_tokens / asked.arrivals, asked.output_tokens / asked.arrivals
        may_use = model.may_use
        one_of = {gpu.kind: gpu.id for gpu in self.state.gpus.values() if may_use(gpu.id)}
        return {
            kind: math.ceil(1000 * rate * self.state.costs.work_s(model.name, gpu, prompt, output))
            for kind, gpu in one_of.items()
        }

    def _load_s(self, model: Model) -> dict[str, float]:
        by_node: dict[str, list[str]] = {}
        for gpu in self.state.gpus.values():
            if model.may_use(gpu.id):
                by_node.setdefault(gpu.node, []).append(gpu.id)
        return {
            node: self.state.costs.load_s(model.name, tuple(gpus[: model.gpus]))
            for node, gpus in by_node.items()
            if len(gpus) >= model.gpus
        }

    def _wake_s(self, copy: Instance) -> float:
        costs = self.state.costs
        return costs.wake_s(copy.id) if copy.phase is Phase.ASLEEP else costs.sleep_s(copy.id, 1)

    def _held(self) -> Iterator[Held]:
        for copy in self.state.instances.values():
            gone = copy.phase is Phase.LEAVING or any(g not in self.state.gpus for g in copy.gpus)
            if not gone:
                yield self._holding(copy)

    def _holding(self, copy: Instance) -> Held:
        spec = self.state.models[copy.model]
        asleep = copy.phase in (Phase.ASLEEP, Phase.SUSPENDING)
        awake_bytes = copy.awake_bytes_per_gpu
        asleep_bytes = copy.bytes_per_gpu if copy.phase is Phase.ASLEEP else spec.asleep_bytes
        now = Fate.ASLEEP if asleep else Fate.AWAKE
        return Held(
            id=copy.id,
            model=copy.model,
            gpus=copy.gpus,
            now=now,
            fates={now: 0, **self._ways_out(copy)},
            awake_mib=_ceil_mib(awake_bytes),
            asleep_mib=_ceil_mib(asleep_bytes),
            host_mib=_ceil_mib(copy.host_bytes if asleep else spec.weights_bytes),
            kv_mib=_ceil_mib(awake_bytes - spec.bytes_per_gpu(0)),
        )

    def _ways_out(self, copy: Instance) -> dict[Fate, int]:
        """Other fates, with their costs. Work in hand is finished before anything changes."""
        state, aims = self.state, self.aims
        stayed_s = state.now_s - copy.ready_since_s
        if state.models[copy.model].pinned and copy.phase is not Phase.ASLEEP:
            return {}
        if copy.phase is Phase.ASLEEP:
            wake_s = state.costs.wake_s(copy.id)
            delayed = self.late(copy.model, state.costs.load_s(copy.model, copy.gpus))
            price = aims.move_per_s + delayed / aims.horizon_s
            ways = {Fate.AWAKE: round(MICRO * price * wake_s)}
            if not state.models[copy.model].pinned:
                ways[Fate.GONE] = self._cost(state.costs.unload_s(copy.id))
            return ways
        if copy.phase is not Phase.READY or copy.busy or stayed_s < state.limits.min_residency_s:
            return {}
        ways = {Fate.GONE: self._cost(state.costs.unload_s(copy.id))}
        if aims.sleep and state.models[copy.model].can_sleep:
            ways[Fate.ASLEEP] = self._cost(state.costs.sleep_s(copy.id, 1))
        return ways

    def _cost(self, seconds: float) -> int:
        return round(MICRO * self.aims.move_per_s * seconds)


def _ceil_mib(size_bytes: float) -> int:
    return math.ceil(size_bytes / MIB)
