"""`ilp`: every few minutes the best placement for the demand ahead; between plans, on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from modelium.core import Action, ClusterState, Phase, Sleep
from modelium.policies.ilp.problem import Effort
from modelium.policies.ilp.search import Answer, Question
from modelium.policies.ilp.view import Aims, View
from modelium.policies.toolkit.diff import Target, diff
from modelium.policies.toolkit.eviction import Option, Survey, may_leave
from modelium.policies.toolkit.forecast import EwmaForecast, Forecast
from modelium.policies.toolkit.least_loss import least_loss
from modelium.policies.toolkit.on_demand import OnDemand
from modelium.policies.toolkit.planned import Planned
from modelium.policies.toolkit.swaps import Need


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
        super().__init__(self._ask, every_s, fallback=_Reaction(self._aims, self._forecast))
        self._found: Answer | None = None
        self._to_sleep: dict[str, str] = {}

    def _ask(self, state: ClusterState) -> Callable[[], Answer]:
        """Read all that a plan depends on; what was asked last has its answer already."""
        view = View(state, self._aims, self._forecast)
        question = Question(view, self._effort, self._min_gain, self._hysteresis)
        same = self._found is not None and question.problem == self._found.problem
        return question.stay if same else question.search

    def adopt(self, state: ClusterState, thought: Answer) -> Iterable[Action]:
        """Pursue the plan that was found."""
        self._found, self._to_sleep = thought, dict(thought.to_sleep)
        return super().adopt(state, thought.target)

    def steps(self, state: ClusterState, target: Target, tidy: bool) -> Sequence[Action]:
        """Put to sleep what should, then go on; what was used since the plan stays."""
        plan = self._found
        if plan is None:
            return ()
        for copy in state.instances.values():
            if copy.phase is Phase.READY and copy.last_used_s > plan.asked_s:
                self._to_sleep.pop(copy.id, None)
                groups = self._target.setdefault(copy.model, [])
                if all(set(group) != set(copy.gpus) for group in groups):
                    groups.append(copy.gpus)
        return self._sleeps(state) or diff(
            state, target, tidy=False, reasons=plan.reasons, kv_bytes=plan.kv_bytes, keep=plan.keep
        )

    def _sleeps(self, state: ClusterState) -> list[Action]:
        """Those that should sleep, as far as RAM is free: the plan counts on RAM that it frees."""
        sleeps: list[Action] = []
        free = {node: state.host_free_bytes(node) for node in state.nodes}
        for name, why in self._to_sleep.items():
            copy = state.instances.get(name)
            if copy is None or copy.phase is not Phase.READY or copy.busy:
                continue
            node, size = state.gpus[copy.gpus[0]].node, state.models[copy.model].weights_bytes
            if size <= free[node]:
                free[node] -= size
                sleeps.append(Sleep(name, 1, why))
        self._to_sleep = {}
        return sleeps


class _Reaction(OnDemand):
    """Serve a miss at once; make room where that makes the fewest requests late."""

    label = "plan loses"

    def __init__(self, aims: Aims, forecast: Forecast) -> None:
        super().__init__("best_fit", sleep_level=1 if aims.sleep else 0)
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
