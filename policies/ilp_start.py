"""Good placements to start the search from, by highest value per byte first, best fit."""

from __future__ import annotations

from modelium.policies.ilp_problem import PARTS, Fate, Held, Placement, Problem, Want, groups


def staying(problem: Problem) -> Placement:
    """Change nothing."""
    return Placement({copy.id: copy.now for copy in problem.held}, {})


def filled(problem: Problem) -> Placement:
    """Change nothing, and load what fits beside it."""
    return _Filling(problem, list(problem.held)).run()


def refilled(problem: Problem) -> Placement:
    """Begin anew: what exists has to be worth its room, or it sleeps or goes."""
    return _Filling(problem, [copy for copy in problem.held if Fate.GONE not in copy.fates]).run()


def possible_gain(problem: Problem) -> float:
    """What no plan can gain over changing nothing, in micro-requests; `inf` if hard to say."""
    now: dict[str, Fate] = {c.model: c.now for c in problem.held if c.now is Fate.ASLEEP}
    now |= {copy.model: copy.now for copy in problem.held if copy.now is Fate.AWAKE}
    busy = dict.fromkeys(problem.room, 0)
    gain = 0
    for want in problem.wants:
        if not problem.light(want) or want.least > (now.get(want.model) is Fate.AWAKE):
            return float("inf")
        if now.get(want.model) is not Fate.AWAKE:
            has = want.asleep_value if want.model in now else 0
            gain += max(0, want.ready_value + PARTS * want.part_value - has)
            continue
        for copy in problem.held_of(want.model):
            for gpu in copy.gpus:
                busy[gpu] += want.work.get(problem.room[gpu].kind, 0)
    if max(busy.values(), default=0) > problem.busy_max:
        return float("inf")
    return gain


class _Filling:
    def __init__(self, problem: Problem, staying: list[Held]) -> None:
        self.problem = problem
        self.free = {room.gpu: problem.usable_mib(room) for room in problem.rooms}
        self.host = {node: problem.usable_host_mib(node) for node in problem.nodes}
        self.idle = dict.fromkeys(problem.room, problem.busy_max)
        self.wants = {want.model: want for want in problem.wants}
        self.fates: dict[str, Fate] = {}
        self.staying = staying
        for copy in staying:
            self._settle(copy, copy.now)

    def run(self) -> Placement:
        loads: dict[str, tuple[str, ...]] = {}
        for want in sorted(self.problem.wants, key=_density, reverse=True):
            held = self.problem.held_of(want.model)
            for copy in held:
                if copy.id not in self.fates and self._fits(copy, Fate.AWAKE):
                    self._settle(copy, Fate.AWAKE)
            ready = any(self.fates.get(c.id) is Fate.AWAKE or c in self.staying for c in held)
            if not ready and (gpus := self._fit(want)):
                loads[want.model] = gpus
                self._take(gpus, self._need(want), want)
        for copy in self.problem.held:
            if copy.id not in self.fates:
                self._settle(copy, Fate.ASLEEP if self._fits(copy, Fate.ASLEEP) else Fate.GONE)
        return Placement(self.fates, {model: [gpus] for model, gpus in loads.items()})

    def _fits(self, copy: Held, fate: Fate) -> bool:
        host = self.host[self.problem.node(*copy.gpus)]
        return (
            fate in copy.fates
            and all(self.free[gpu] >= copy.mib(fate) for gpu in copy.gpus)
            and (fate is not Fate.ASLEEP or host >= copy.host_mib)
        )

    def _settle(self, copy: Held, fate: Fate) -> None:
        self.fates[copy.id] = fate
        self._take(
            copy.gpus, copy.mib(fate), self.wants.get(copy.model) if fate is Fate.AWAKE else None
        )
        if fate is Fate.ASLEEP:
            self.host[self.problem.node(*copy.gpus)] -= copy.host_mib

    def _fit(self, want: Want) -> tuple[str, ...]:
        """The group with least room left over, among those that have room and time."""
        fitting = [
            (sum(self.free[gpu] for gpu in group), group)
            for group in groups(self.problem, want)
            if _value(want, self.problem.node(*group)) > 0
            and all(
                self.free[g] >= self._need(want) and self.idle[g] >= self._work(want, g)
                for g in group
            )
        ]
        return min(fitting)[1] if fitting else ()

    def _need(self, want: Want) -> int:
        return want.fixed_mib + max(want.kv_min_mib, want.kv_full_mib)

    def _work(self, want: Want, gpu: str) -> int:
        return min(want.work.get(self.problem.room[gpu].kind, 0), self.problem.busy_max)

    def _take(self, gpus: tuple[str, ...], mib: int, want: Want | None) -> None:
        for gpu in gpus:
            self.free[gpu] -= mib
            self.idle[gpu] -= self._work(want, gpu) if want else 0


def _value(want: Want, node: str) -> int:
    return want.ready_value + PARTS * want.part_value - want.load_cost.get(node, 0)


def _density(want: Want) -> float:
    size = want.gpus * (want.fixed_mib + max(want.kv_min_mib, want.kv_full_mib))
    return (want.ready_value + PARTS * want.part_value) / max(size, 1)
