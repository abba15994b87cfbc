"""A good placement to start the search from: keep what is there, fill the room that is left."""

from __future__ import annotations

from modelium.policies.ilp_problem import PARTS, Fate, Placement, Problem, Want, groups


def staying(problem: Problem) -> Placement:
    """Change nothing."""
    return Placement({copy.id: copy.now for copy in problem.held}, {})


def filled(problem: Problem) -> Placement:
    """Change nothing, and load what fits beside it: highest value per byte first, best fit."""
    return _Filling(problem).run()


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
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.free = {room.gpu: problem.usable_mib(room) for room in problem.rooms}
        self.idle = dict.fromkeys(problem.room, problem.busy_max)
        wants = {want.model: want for want in problem.wants}
        for copy in problem.held:
            self._take(copy.gpus, copy.mib(copy.now), None)
            if copy.now is Fate.AWAKE:
                self._take(copy.gpus, 0, wants.get(copy.model))

    def run(self) -> Placement:
        loads: dict[str, tuple[str, ...]] = {}
        for want in sorted(self.problem.wants, key=_density, reverse=True):
            if not self.problem.held_of(want.model) and (gpus := self._fit(want)):
                loads[want.model] = gpus
                self._take(gpus, self._need(want), want)
        return Placement(staying(self.problem).fates, self._in_order(loads))

    def _in_order(self, loads: dict[str, tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]]:
        """Rename GPUs that are alike so that the earlier ones get more."""
        size = {want.model: want.fixed_mib for want in self.problem.wants}
        new = dict.fromkeys(self.problem.room, 0)
        for model, group in loads.items():
            for gpu in group:
                new[gpu] += size[model]
        name = {gpu: gpu for gpu in new}
        for gpus in self.problem.alike():
            fullest = sorted(gpus, key=lambda gpu: -new[gpu])
            name.update(zip(fullest, gpus, strict=True))
        order = {gpu: i for i, gpu in enumerate(name)}
        return {
            model: [tuple(sorted((name[gpu] for gpu in group), key=order.__getitem__))]
            for model, group in loads.items()
        }

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
