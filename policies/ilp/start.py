"""Good placements to start the search from.

The models that are worth most per byte are chosen until most of the memory is spoken for, and
packed: those that have a copy first, then the largest, best fit; then whatever else still fits.
"""

from __future__ import annotations

from modelium.policies.ilp.problem import PARTS, Fate, Held, Placement, Problem, Want, groups

PACKED = 0.95
"""Share of the free memory that the chosen models may take: bins never fill to the brim."""


def staying(problem: Problem) -> Placement:
    """Change nothing."""
    return Placement({copy.id: copy.now for copy in problem.held}, {})


def filled(problem: Problem) -> Placement:
    """Change nothing, and load what fits beside it."""
    return _Filling(problem, list(problem.held)).run()


def refilled(problem: Problem, split: bool = False) -> Placement:
    """Begin anew: what exists has to be worth its room, or it sleeps or goes.

    With `split`, models get as many copies as their demand takes, else one.
    """
    fixed = [copy for copy in problem.held if Fate.GONE not in copy.fates]
    return _Filling(problem, fixed, split).run()


def starts(problem: Problem) -> list[Placement]:
    """All of these, each once."""
    found: list[Placement] = []
    for placement in (filled(problem), refilled(problem), refilled(problem, split=True)):
        if placement not in found:
            found.append(placement)
    return found


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
    def __init__(self, problem: Problem, staying: list[Held], split: bool = False) -> None:
        self.problem = problem
        self.free = {room.gpu: problem.usable_mib(room) for room in problem.rooms}
        self.host = {node: problem.usable_host_mib(node) for node in problem.nodes}
        self.idle = dict.fromkeys(problem.room, problem.busy_max)
        self.wants = {want.model: want for want in problem.wants}
        self.fates: dict[str, Fate] = {}
        self.staying = staying
        self.split = split
        for copy in staying:
            self._settle(copy, copy.now)

    def run(self) -> Placement:
        loads: dict[str, list[tuple[str, ...]]] = {}
        for want in self._order():
            held = self.problem.held_of(want.model)
            for copy in held:
                if copy.id not in self.fates and self._fits(copy, Fate.AWAKE):
                    self._settle(copy, Fate.AWAKE)
            ready = sum(self.fates.get(c.id) is Fate.AWAKE or c in self.staying for c in held)
            there = [copy.gpus for copy in held]
            while ready < self._copies(want) and (gpus := self._fit(want, there)):
                loads.setdefault(want.model, []).append(gpus)
                self._take(gpus, self._need(want), want)
                there.append(gpus)
                ready += 1
        for copy in self.problem.held:
            if copy.id not in self.fates:
                self._settle(copy, Fate.ASLEEP if self._fits(copy, Fate.ASLEEP) else Fate.GONE)
        return Placement(self.fates, loads)

    def _order(self) -> list[Want]:
        """The chosen ones as they should be packed, then the others by value per byte."""
        left = PACKED * sum(self.free.values())
        chosen: list[Want] = []
        others: list[Want] = []
        for want in sorted(self.problem.wants, key=_urgency, reverse=True):
            size = self._copies(want) * want.gpus * self._need(want)
            (chosen if size <= left else others).append(want)
            left -= size if size <= left else 0
        return sorted(chosen, key=self._packing) + others

    def _packing(self, want: Want) -> tuple[bool, int, int]:
        """Order among the chosen: what is there already, then the hardest to place."""
        there = bool(self.problem.held_of(want.model))
        return not there, -want.gpus, -self._need(want)

    def _copies(self, want: Want) -> int:
        work = max(want.work.values(), default=0) if self.split else 0
        needed = -(-work // self.problem.busy_max)
        return max(1, want.least, min(want.most, needed))

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

    def _fit(self, want: Want, there: list[tuple[str, ...]]) -> tuple[str, ...]:
        """The group with least room left over, among those that have room and time."""
        taken = {gpu for group in there for gpu in group}
        nodes = {self.problem.node(*group) for group in there} if want.spread else set()
        fitting = [
            (sum(self.free[gpu] for gpu in group), group)
            for group in groups(self.problem, want)
            if (want.least or _value(want, self.problem.node(*group)) > 0)
            and taken.isdisjoint(group)
            and self.problem.node(*group) not in nodes
            and all(
                self.free[g] >= self._need(want) and self.idle[g] >= self._work(want, g)
                for g in group
            )
        ]
        return min(fitting)[1] if fitting else ()

    def _need(self, want: Want) -> int:
        return want.fixed_mib + max(want.kv_min_mib, -(-want.kv_full_mib // self._copies(want)))

    def _work(self, want: Want, gpu: str) -> int:
        share = -(-want.work.get(self.problem.room[gpu].kind, 0) // self._copies(want))
        return min(share, self.problem.busy_max)

    def _take(self, gpus: tuple[str, ...], mib: int, want: Want | None) -> None:
        for gpu in gpus:
            self.free[gpu] -= mib
            self.idle[gpu] -= self._work(want, gpu) if want else 0


def _value(want: Want, node: str) -> int:
    return want.ready_value + PARTS * want.part_value - want.load_cost.get(node, 0)


def _urgency(want: Want) -> tuple[bool, float]:
    """What the operator's minima ask for comes first."""
    return want.least > 0, _density(want)


def _density(want: Want) -> float:
    size = want.gpus * (want.fixed_mib + max(want.kv_min_mib, want.kv_full_mib))
    return (want.ready_value + PARTS * want.part_value) / max(size, 1)
