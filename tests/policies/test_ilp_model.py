"""The integer programme against trying everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from modelium.policies.ilp.model import Programme, solve
from modelium.policies.ilp.problem import (
    PARTS,
    Effort,
    Fate,
    Held,
    Problem,
    Room,
    Want,
)  # fmt: skip
from modelium.policies.ilp.start import possible_gain, starts

FULL = Effort(work=1000.0)
AWAKE, ASLEEP, GONE = Fate.AWAKE, Fate.ASLEEP, Fate.GONE


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 4 GPUs on 2 nodes and 5 models, some of them there already."""
    nodes = draw(st.sampled_from([["a"], ["a", "a"], ["a", "b"], ["a"] * 4, ["a", "a", "b", "b"]]))
    kinds = draw(st.sampled_from([["x"], ["x", "y"]]))
    rooms = tuple(
        Room(f"g{i}", node, draw(st.sampled_from([60, 80])), kinds[i % len(kinds)])
        for i, node in enumerate(nodes)
    )
    number = draw(st.integers(1, 5))
    wants = [_want(draw, f"m{i}", heavy=i < 2) for i in range(number)]
    free = {room.gpu: room.memory_mib for room in rooms}
    held = [copy for want in wants if (copy := _held(draw, want, rooms, free))]
    return Problem(
        rooms=rooms,
        wants=tuple(wants),
        held=tuple(held),
        host_mib={node: draw(st.sampled_from([0, 30, 100])) for node in nodes},
        busy_max=800,
        overload_cost=draw(st.sampled_from([0, 7, 1000])),
    )


def _want(draw: st.DrawFn, name: str, heavy: bool) -> Want:
    heavy = heavy and draw(st.booleans())
    kv_min = draw(st.integers(0, 5))
    ready = draw(st.integers(0, 5000))
    return Want(
        model=name,
        fixed_mib=draw(st.integers(10, 45)),
        gpus=draw(st.sampled_from([1, 1, 2])),
        kv_min_mib=kv_min,
        kv_full_mib=kv_min + (draw(st.integers(0, 30)) if heavy else 0),
        ready_value=ready,
        asleep_value=draw(st.integers(0, ready)),
        part_value=draw(st.integers(0, 9)),
        work={"x": draw(st.integers(0, 1500 if heavy else 200)), "y": draw(st.integers(0, 200))},
        load_cost={"a": draw(st.integers(0, 800)), "b": draw(st.integers(0, 800))},
        least=draw(st.sampled_from([0, 0, 1, 2])),
        most=draw(st.sampled_from([1, 2])),
        spread=draw(st.booleans()),
        allowed=draw(st.sampled_from([None, None, frozenset({"g0"}), frozenset({"g1", "g2"})])),
    )


def _held(
    draw: st.DrawFn, want: Want, rooms: tuple[Room, ...], free: dict[str, int]
) -> Held | None:
    node = rooms[0].node
    gpus = tuple(room.gpu for room in rooms if room.node == node)[: want.gpus]
    if len(gpus) < want.gpus or not draw(st.booleans()):
        return None
    kv = draw(st.integers(0, want.kv_full_mib))
    now = draw(st.sampled_from([AWAKE, ASLEEP]))
    ways = draw(st.sampled_from([(), (AWAKE, GONE), (AWAKE, ASLEEP, GONE)]))
    costs = {AWAKE: 30, ASLEEP: 20, GONE: 10} | {now: 0}
    copy = Held(
        id=f"{want.model}#0", model=want.model, gpus=gpus, now=now,
        fates={now: 0, **{way: costs[way] for way in ways}},
        awake_mib=want.fixed_mib + kv, asleep_mib=2, host_mib=want.fixed_mib, kv_mib=kv,
    )  # fmt: skip
    if any(free[gpu] < copy.mib(now) for gpu in gpus):
        return None
    for gpu in gpus:
        free[gpu] -= copy.mib(now)
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_equals_trying_everything_and_is_never_worse_than_its_hints(problem: Problem) -> None:
    stay, best = solve(problem, FULL)
    assert (best.missing, best.value) == brute_force(problem)
    assert best.bound == best.value
    assert (-best.missing, best.value) >= (-stay.missing, stay.value)
    for placement in starts(problem):
        start = Programme(problem).complete(placement)
        assert start is None or not start.plan.better_than(best)
    if not best.missing < stay.missing:
        assert best.value - stay.value <= possible_gain(problem)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from([1e-9, 1e-5, 1e-4]))
def test_a_search_cut_short_still_bounds_the_optimum(problem: Problem, work: float) -> None:
    stay, best = solve(problem, Effort(work))
    missing, value = brute_force(problem)
    for plan in (stay, best):
        assert (-plan.missing, plan.value) <= (-missing, value)
        assert plan.bound >= value


# The slow, obvious optimum

Loads = tuple[tuple[str, ...], ...]


def brute_force(problem: Problem) -> tuple[int, int]:
    """Return (missing copies, value) of the best placement."""
    best = (10**9, 0)
    fates_of = [list(copy.fates) for copy in problem.held]
    for chosen in product(*fates_of):
        fates = {copy.id: fate for copy, fate in zip(problem.held, chosen, strict=True)}
        free = {room.gpu: problem.usable_mib(room) for room in problem.rooms}
        for copy in problem.held:
            for gpu in copy.gpus:
                free[gpu] -= copy.mib(fates[copy.id])
        if min(free.values()) >= 0 and _hosts_hold(problem, fates):
            base = -sum(copy.fates[fates[copy.id]] for copy in problem.held)
            for placed in _placements(problem, fates, free, list(problem.wants)):
                best = min(best, _judge(problem, fates, dict(placed), base, best))
    return best[0], -best[1]


def _hosts_hold(problem: Problem, fates: dict[str, Fate]) -> bool:
    need: Counter[str] = Counter()
    for copy in problem.held:
        if fates[copy.id] is Fate.ASLEEP:
            need[problem.node(*copy.gpus)] += copy.host_mib
    return all(mib <= problem.usable_host_mib(node) for node, mib in need.items())


def _placements(
    problem: Problem, fates: dict[str, Fate], free: dict[str, int], wants: list[Want]
) -> Iterator[list[tuple[str, Loads]]]:
    """Every way to load copies of `wants` that fits in `free` (which is restored)."""
    if not wants:
        yield []
        return
    want, *rest = wants
    for loads in _loads(problem, fates, want):
        need = want.fixed_mib + want.kv_min_mib
        used = [gpu for group in loads for gpu in group]
        if all(free[gpu] >= need for gpu in used):
            for gpu in used:
                free[gpu] -= need
            for others in _placements(problem, fates, free, rest):
                yield [(want.model, loads), *others]
            for gpu in used:
                free[gpu] += need


def _loads(problem: Problem, fates: dict[str, Fate], want: Want) -> list[Loads]:
    """Sets of disjoint GPU groups for new copies that the model's own rules allow."""
    held = problem.held_of(want.model)
    there = [copy for copy in held if fates[copy.id] is not Fate.GONE]
    awake = sum(fates[copy.id] is Fate.AWAKE for copy in held)
    taken = {gpu for copy in held for gpu in copy.gpus}
    allowed = want.allowed or frozenset(problem.room)
    open_ = [r.gpu for r in problem.rooms if r.gpu in allowed and r.gpu not in taken]
    groups = [
        group
        for size in [want.gpus]
        for group in combinations(open_, size)
        if len({problem.room[gpu].node for gpu in group}) == 1
    ]
    found = []
    for n in range(len(problem.rooms) + 1):
        for loads in combinations(groups, n):
            used = [gpu for group in loads for gpu in group]
            per_node = Counter(problem.node(*copy.gpus) for copy in there)
            per_node.update(problem.node(*group) for group in loads)
            before = Counter(problem.node(*copy.gpus) for copy in held)
            legal = (
                len(used) == len(set(used))
                and len(there) + n <= max(want.most, len(held))
                and not (problem.light(want) and awake + n > 1)
                and not (want.spread and any(k > max(1, before[at]) for at, k in per_node.items()))
            )
            if legal:
                found.append(loads)
    return found


def _judge(
    problem: Problem,
    fates: dict[str, Fate],
    placed: dict[str, Loads],
    base: int,
    best: tuple[int, int],
) -> tuple[int, int]:
    """(missing, -value) of one placement."""
    missing, value, most = 0, base, 0
    busy: Counter[str] = Counter()
    heavy = []
    for want in problem.wants:
        awake = [c for c in problem.held_of(want.model) if fates[c.id] is Fate.AWAKE]
        asleep = any(fates[c.id] is Fate.ASLEEP for c in problem.held_of(want.model))
        new = placed[want.model]
        ready = len(awake) + len(new)
        missing += max(0, want.least - ready)
        value -= sum(want.load_cost.get(problem.node(*group), 0) for group in new)
        value += max(want.ready_value if ready else 0, want.asleep_value if asleep else 0)
        if not ready:
            continue
        most += want.part_value * PARTS
        if problem.light(want):
            value += want.part_value * PARTS
            most -= want.part_value * PARTS
            if want.ready_value < want.asleep_value:
                raise AssertionError("not a case that these tests make")
            for gpu in awake[0].gpus if awake else new[0]:
                busy[gpu] += PARTS * want.work.get(problem.room[gpu].kind, 0)
        else:
            heavy.append((want, awake, new))
    if (missing, -value - most) >= best:
        return best
    return missing, -value - _serve(problem, heavy, busy, fates, placed)


def _serve(problem, heavy, busy, fates, placed) -> int:  # type: ignore[no-untyped-def]
    """Best service of the heavy demand, less the cost of overload: a small programme by HiGHS."""
    free = {room.gpu: problem.usable_mib(room) for room in problem.rooms}
    for copy in problem.held:
        for gpu in copy.gpus:
            free[gpu] -= copy.mib(fates[copy.id])
    for want in problem.wants:
        for group in placed[want.model]:
            for gpu in group:
                free[gpu] -= want.fixed_mib + want.kv_min_mib
    gpus = list(free)
    columns: list[tuple[float, float]] = [(-problem.overload_cost, np.inf) for _ in gpus]
    rows: list[tuple[dict[int, float], float]] = []
    work: list[dict[int, float]] = [{i: -PARTS} for i in range(len(gpus))]
    memory: list[dict[int, float]] = [{} for _ in gpus]
    for want, awake, new in heavy:
        parts = {}
        for kv_mib, group in [(c.kv_mib, c.gpus) for c in awake] + [(None, g) for g in new]:
            at = len(columns)
            columns.append((want.part_value, PARTS))
            parts[at] = 1.0
            for gpu in group:
                work[gpus.index(gpu)][at] = want.work.get(problem.room[gpu].kind, 0)
            if kv_mib is not None:
                rows.append(({at: want.kv_full_mib}, max(kv_mib, 0) * PARTS)) if (
                    kv_mib < want.kv_full_mib
                ) else None
                continue
            columns.append((0.0, max(0, want.kv_full_mib - want.kv_min_mib)))
            rows.append(({at: want.kv_full_mib, at + 1: -PARTS}, PARTS * want.kv_min_mib))
            for gpu in group:
                memory[gpus.index(gpu)][at + 1] = 1.0
        rows.append((parts, PARTS))
    rows += [(w, problem.busy_max * PARTS - busy[g]) for w, g in zip(work, gpus, strict=True)]
    rows += [(m, free[g]) for m, g in zip(memory, gpus, strict=True) if m]
    matrix = np.zeros((len(rows), len(columns)))
    for i, (terms, _) in enumerate(rows):
        for j, coefficient in terms.items():
            matrix[i, j] = coefficient
    found = milp(
        -np.array([value for value, _ in columns], float),
        constraints=LinearConstraint(
            matrix, -np.inf, np.array([limit for _, limit in rows], float)
        ),
        bounds=Bounds(0, np.array([most for _, most in columns], float)),
        integrality=np.ones(len(columns)),
        options={"mip_rel_gap": 0.0},
    )
    assert found.success, found.message
    x = np.rint(found.x).astype(int)
    return int(sum(int(value) * int(k) for (value, _), k in zip(columns, x, strict=True)))
