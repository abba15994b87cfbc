"""`ilp`: every few minutes the best placement for the demand ahead; between plans, on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelium.core import Action, ClusterState, Phase, Sleep
from modelium.policies.diff import Target, diff
from modelium.policies.forecast import EwmaForecast, Forecast
from modelium.policies.ilp_problem import MICRO, Effort, Fate, Plan, Problem
from modelium.policies.ilp_start import possible_gain
from modelium.policies.ilp_view import Aims, View
from modelium.policies.least_loss import least_loss
from modelium.policies.on_demand import Need, OnDemand
from modelium.policies.planned import Planned
from modelium.policies.room import AWAKE, Option, Survey, may_leave
from modelium.units import MIB, format_bytes


class Ilp(Planned):
    """Plan placement as an integer programme on a demand forecast (OR-Tools CP-SAT).

    Maximises the requests kept from being late over `horizon_s`, less what the changes cost from
    the tier where each model is now. Between plans a miss loads at once, and makes room where that
    makes the fewest requests late per byte. Same inputs, same plan, unless `time_limit_s` strikes.

    every_s: time between plans.
    horizon_s: how far a plan looks ahead.
    min_gain: requests that a plan must keep from being late, else nothing changes.
    hysteresis: the same as a share of what the present placement is worth.
    sleep: evicted copies sleep at level 1 (weights in host RAM) where there is room.
    busy_max: share of a GPU's time that may be planned for.
    kv_least: smallest KV pool of a new copy, as a share of the model's own.
    kv_headroom: KV pool over what the forecast needs on average, up to the model's own.
    crowd_share: share of the requests without compute or KV memory that is counted as late.
    move_per_s: requests that each second of a change costs, beside its delay.
    patience_s: wait after which a request of a model without TTFT SLO counts as late.
    work: effort of a solve in CP-SAT's deterministic time, about seconds of one core.
    time_limit_s: wall time of a solve.
    workers: threads of a solve; with more than one, plans may differ from run to run.
    seed: of the solver.
    forecast: what demand to expect.
    """

    def __init__(
        self,
        *,
        every_s: float = 300.0,
        horizon_s: float = 900.0,
        min_gain: float = 0.5,
        hysteresis: float = 0.05,
        sleep: bool = True,
        busy_max: float = 0.8,
        kv_least: float = 0.5,
        kv_headroom: float = 1.5,
        crowd_share: float = 0.1,
        move_per_s: float = 0.005,
        patience_s: float = 10.0,
        work: float = 0.05,
        time_limit_s: float = float("inf"),
        workers: int = 1,
        seed: int = 0,
        forecast: Forecast | None = None,
    ) -> None:
        self._aims = Aims(
            horizon_s, busy_max, crowd_share, move_per_s, patience_s, kv_least, kv_headroom, sleep
        )
        self._forecast = forecast or EwmaForecast()
        self._effort = Effort(work, time_limit_s, workers, seed)
        self._min_gain = min_gain
        self._hysteresis = hysteresis
        super().__init__(self._place, every_s, fallback=_Reaction(self._aims, self._forecast))
        self._planned_s = float("-inf")
        self._problem: Problem | None = None
        self._to_sleep: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._kv_bytes: dict[str, int] = {}
        self._keep: set[str] = set()

    def _place(self, state: ClusterState) -> Target:
        """The plan: what is there now, unless changing it gains enough."""
        view = View(state, self._aims, self._forecast)
        problem, last = view.problem(), self._problem
        self._planned_s, self._problem = state.now_s, problem
        self._to_sleep, self._reasons, self._kv_bytes = {}, {}, {}
        self._keep = set()
        if problem == last or possible_gain(problem) < self._min_gain * MICRO:
            return _as_it_is(state)
        from modelium.policies.ilp_model import solve  # OR-Tools takes a second to import

        stay, best = solve(problem, self._effort)
        needed = max(self._min_gain * MICRO, self._hysteresis * abs(stay.value))
        if best.missing >= stay.missing and best.value - stay.value < needed:
            return _as_it_is(state)
        self._explain(view, best, (best.value - stay.value) / MICRO)
        return _target(state, best)

    def _explain(self, view: View, plan: Plan, gain: float) -> None:
        state = view.state
        self._keep = {copy for copy, fate in plan.fates.items() if fate is not Fate.GONE}
        for new in plan.new:
            self._kv_bytes[new.model] = new.kv_mib * MIB * len(new.gpus)
        comes = [new.model for new in plan.new]
        for copy in state.instances.values():
            fate = plan.fates.get(copy.id)
            if fate is Fate.AWAKE and copy.phase is Phase.ASLEEP:
                comes.append(copy.model)
            elif fate and fate is not Fate.AWAKE and copy.phase is Phase.READY:
                size = format_bytes(copy.bytes_per_gpu * len(copy.gpus))
                rate = view.rate_per_s(copy.model)
                why = f"plan {gain:+.1f}: frees {size} of {copy.model} ({rate:.2g}/s)"
                self._reasons[copy.model] = why
                if fate is Fate.ASLEEP:
                    self._to_sleep[copy.id] = why
        for model in comes:
            rate = view.rate_per_s(model)
            self._reasons[model] = f"plan {gain:+.1f}: serves {rate:.2g}/s of {model} without delay"

    def steps(self, state: ClusterState, target: Target, tidy: bool) -> Sequence[Action]:
        """Put to sleep what should, then go on; what was used since the plan stays."""
        for copy in state.instances.values():
            if copy.phase is Phase.READY and copy.last_used_s > self._planned_s:
                self._to_sleep.pop(copy.id, None)
                groups = self._target.setdefault(copy.model, [])
                if all(set(group) != set(copy.gpus) for group in groups):
                    groups.append(copy.gpus)
        idle = [c for c in self._to_sleep if c in state.instances and not state.instances[c].busy]
        sleeps = [Sleep(copy, 1, self._to_sleep[copy]) for copy in idle]
        self._to_sleep = {}
        return sleeps or diff(
            state,
            target,
            tidy=False,
            reasons=self._reasons,
            kv_bytes=self._kv_bytes,
            keep=self._keep,
        )


class _Reaction(OnDemand):
    """Serve a miss at once; make room where that makes the fewest requests late."""

    label = "plan loses"

    def __init__(self, aims: Aims, forecast: Forecast) -> None:
        super().__init__(sleep_level=1 if aims.sleep else 0)
        self._aims, self._forecast = aims, forecast

    def make_room(
        self, state: ClusterState, survey: Survey, rooms: Mapping[str, int], need: Need
    ) -> Option | None:
        """Put to sleep or unload what the plan values least, where that loses least."""
        view = View(state, self._aims, self._forecast)
        leavers = [
            view.leaver(copy)
            for copy in survey.ready + survey.asleep
            if not copy.busy and copy is not need.waking and may_leave(state, copy, self._least)
        ]
        found = least_loss(state, rooms, need.bytes_per_gpu, need.gpus, leavers)
        return found or super().make_room(state, survey, rooms, need)

    def kv_bytes(self, state: ClusterState, model: str) -> int | None:
        """As large as the forecast needs."""
        return View(state, self._aims, self._forecast).kv_bytes(model)


def _as_it_is(state: ClusterState) -> Target:
    target: dict[str, list[tuple[str, ...]]] = {}
    for copy in state.instances.values():
        if copy.phase in AWAKE:
            target.setdefault(copy.model, []).append(copy.gpus)
    return target


def _target(state: ClusterState, plan: Plan) -> Target:
    target: dict[str, list[tuple[str, ...]]] = {}
    for copy, fate in plan.fates.items():
        if fate is Fate.AWAKE:
            here = state.instances[copy]
            target.setdefault(here.model, []).append(here.gpus)
    for new in plan.new:
        target.setdefault(new.model, []).append(new.gpus)
    return target
