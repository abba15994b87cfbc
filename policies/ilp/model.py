"""Placement of models on GPUs as an integer programme, solved by OR-Tools CP-SAT.

Which copies stay, sleep, wake, go or come is one decision for the whole cluster: maximise the
requests kept from waiting, less what the changes cost, within memory, compute and the operator's
rules. Units are those of `ilp_problem`; there is no cluster, no clock and no I/O here.

A *light* model has one ready copy at most, which serves its whole demand and charges its GPUs for
it. A heavy one splits its demand over its ready copies as far as compute and KV memory go: what a
copy's KV pool must hold grows with what the copy serves. A tensor-parallel copy charges each of its
GPUs, all on one node. Light models may overload a GPU, at a cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ortools.sat.python import cp_model
from ortools.sat.python.cp_model import IntVar

from modelium.policies.ilp.problem import (
    PARTS,
    Effort,
    Fate,
    Held,
    New,
    Placement,
    Plan,
    Problem,
    Want,
    free_gpus,
    groups,
)  # fmt: skip
from modelium.policies.ilp.start import starts, staying

Terms = list[tuple[IntVar, int]]
SEARCHES = ("max_lp", "reduced_costs", "quick_restart", "no_lp", "core", "default_lp")
"""CP-SAT's complete searches; with few workers the first ones, which bound best, and local ones."""


class _Option(NamedTuple):
    """One way to have a ready copy: keep or wake one that exists, or load one."""

    ready: IntVar
    gpus: Mapping[str, IntVar]
    """By GPU: this copy takes it. All the same variable, unless the group is open."""
    kv_mib: int
    """KV pool without extra."""
    held: str = ""


class Found(NamedTuple):
    """A plan, with the value of each variable, and the wall time that the search took."""

    plan: Plan
    solution: tuple[int, ...]
    wall_s: float


def solve(problem: Problem, effort: Effort) -> tuple[Plan, Plan]:
    """Return what changing nothing is worth, and the best plan found, which is never worse."""
    programme = Programme(problem)
    stay = programme.complete(staying(problem))
    if stay is None:
        raise AssertionError("what exists is legal")
    start, left_s = stay, effort.time_limit_s - stay.wall_s
    for placement in starts(problem):
        if found := programme.complete(placement):
            left_s -= found.wall_s
            start = found if found.plan.better_than(start.plan) else start
    best = programme.improve(start, replace(effort, time_limit_s=max(left_s, 0.0)))
    return stay.plan, best.plan


class Programme:
    """The variables and constraints of one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._cp = cp_model.CpModel()
        self._fate: dict[tuple[str, Fate], IntVar] = {}
        self._loads: dict[str, list[_Option]] = defaultdict(list)
        self._extra: dict[int, IntVar] = {}
        self._missing: list[IntVar] = []
        self._gain: Terms = []
        self._memory: dict[str, Terms] = defaultdict(list)
        self._busy: dict[str, Terms] = defaultdict(list)
        self._large: dict[str, list[tuple[IntVar, IntVar, int]]] = defaultdict(list)
        for copy in problem.held:
            self._add_held(copy)
        for want in problem.wants:
            self._add_model(want)
        for room in problem.rooms:
            self._cp.add(_sum(self._memory[room.gpu]) <= problem.usable_mib(room))
            self._limit_work(room.gpu)
        self._limit_hosts()
        self._weight = 1 + sum(abs(value) * _most(var) for var, value in self._gain)
        self._ceiling = sum(max(value, 0) * _most(var) for var, value in self._gain)
        short = [(var, -self._weight) for var in self._missing]
        self._cp.maximize(_sum(self._gain + short))

    # What may be chosen

    def _add_held(self, copy: Held) -> None:
        for fate, cost in copy.fates.items():
            var = self._cp.new_bool_var("")
            self._fate[copy.id, fate] = var
            self._gain.append((var, -cost))
            for gpu in copy.gpus:
                self._memory[gpu].append((var, copy.mib(fate)))
        self._cp.add_exactly_one(self._fate[copy.id, fate] for fate in copy.fates)

    def _add_model(self, want: Want) -> None:
        held = self.problem.held_of(want.model)
        light = self.problem.light(want)
        loads = self._loads[want.model]
        loads += self._open_loads(want) if light and want.gpus > 1 else self._group_loads(want)
        for load in loads:
            cost = want.load_cost.get(self.problem.node(*load.gpus), 0)
            self._gain.append((load.ready, -cost))
            for gpu, var in load.gpus.items():
                self._memory[gpu].append((var, want.fixed_mib + want.kv_min_mib))
        options = [*self._kept(held), *loads]
        self._bound_copies(want, held, options)
        asleep = [self._fate[c.id, Fate.ASLEEP] for c in held if Fate.ASLEEP in c.fates]
        ready, rests = self._cp.new_bool_var(""), self._cp.new_bool_var("")
        copies = sum(option.ready for option in options)
        self._cp.add(ready == copies if light else ready <= copies)
        self._cp.add(rests <= sum(asleep))
        self._cp.add_at_most_one(ready, rests)
        self._gain += [(ready, want.ready_value), (rests, want.asleep_value)]
        if light:
            self._gain.append((ready, want.part_value * PARTS))
            for option in options:
                self._charge(want, option.gpus, PARTS)
        else:
            self._split(want, options)

    def _kept(self, held: list[Held]) -> Iterator[_Option]:
        for copy in held:
            if (var := self._fate.get((copy.id, Fate.AWAKE))) is not None:
                yield _Option(var, dict.fromkeys(copy.gpus, var), copy.kv_mib, copy.id)

    def _group_loads(self, want: Want) -> list[_Option]:
        """One option for each group of GPUs."""
        found = []
        for group in groups(self.problem, want):
            var = self._cp.new_bool_var("")
            found.append(_Option(var, dict.fromkeys(group, var), want.kv_min_mib))
        for gpu in self.problem.room if want.gpus > 1 else ():
            self._cp.add_at_most_one(option.ready for option in found if gpu in option.gpus)
        return found

    def _open_loads(self, want: Want) -> list[_Option]:
        """One option for each node, on any of its GPUs: there is one copy at most."""
        found = []
        for gpus in free_gpus(self.problem, want).values():
            ready = self._cp.new_bool_var("")
            on = {gpu: self._cp.new_bool_var("") for gpu in gpus}
            self._cp.add(sum(on.values()) == want.gpus * ready)
            found.append(_Option(ready, on, want.kv_min_mib))
        return found

    # What is served

    def _split(self, want: Want, options: list[_Option]) -> None:
        """Divide the demand over the ready copies, as far as their compute and KV pools go."""
        parts = []
        for option in options:
            served = self._cp.new_int_var(0, PARTS, "")
            if option.held:
                most = min(PARTS, option.kv_mib * PARTS // max(want.kv_full_mib, 1))
                most = PARTS if want.kv_full_mib <= option.kv_mib else most
                self._cp.add(served <= most * option.ready)
            else:
                self._cp.add(served <= PARTS * option.ready)
                self._grow_kv(want, option, served)
            self._charge(want, dict.fromkeys(option.gpus, served), 1)
            self._note_large(want, option, served)
            parts.append(served)
        self._cp.add(sum(parts) <= PARTS)
        self._gain += [(served, want.part_value) for served in parts]

    def _grow_kv(self, want: Want, option: _Option, served: IntVar) -> None:
        if want.kv_full_mib <= want.kv_min_mib:
            return
        extra = self._cp.new_int_var(0, want.kv_full_mib - want.kv_min_mib, "")
        needed = want.kv_full_mib * served - PARTS * want.kv_min_mib * option.ready
        self._cp.add(PARTS * extra >= needed)
        self._extra[option.ready.index] = extra
        for gpu in option.gpus:
            self._memory[gpu].append((extra, 1))

    def _charge(self, want: Want, parts: Mapping[str, IntVar], each: int) -> None:
        for gpu, var in parts.items():
            work = want.work.get(self.problem.room[gpu].kind, 0)
            self._busy[gpu].append((var, work * each))

    def _note_large(self, want: Want, option: _Option, served: IntVar) -> None:
        for gpu in option.gpus:
            work = want.work.get(self.problem.room[gpu].kind, 0)
            if work > self.problem.busy_max:
                self._large[gpu].append((option.ready, served, work))

    # What limits it

    def _bound_copies(self, want: Want, held: list[Held], options: list[_Option]) -> None:
        """Least and most copies, and one per node; what exists may stay regardless."""
        gone = [self._fate[c.id, Fate.GONE] for c in held if Fate.GONE in c.fates]
        loads = [option.ready for option in options if not option.held]
        self._cp.add(len(held) - sum(gone) + sum(loads) <= max(want.most, len(held)))
        if want.least:
            short = self._cp.new_int_var(0, want.least, "")
            self._cp.add(short >= want.least - sum(option.ready for option in options))
            self._missing.append(short)
        for node in self.problem.nodes if want.spread else ():
            here = [c for c in held if self.problem.node(*c.gpus) == node]
            left = [self._fate[c.id, Fate.GONE] for c in here if Fate.GONE in c.fates]
            new = [o.ready for o in options if not o.held and self.problem.node(*o.gpus) == node]
            self._cp.add(len(here) - sum(left) + sum(new) <= max(1, len(here)))

    def _limit_work(self, gpu: str) -> None:
        busy, limit = self._busy[gpu], self.problem.busy_max * PARTS
        excess = sum(work * _most(var) for var, work in busy) - limit
        if excess <= 0:
            return
        overload = self._cp.new_int_var(0, -(-excess // PARTS), "")
        self._cp.add(_sum(busy) - PARTS * overload <= limit)
        self._gain.append((overload, -self.problem.overload_cost))
        for ready, served, work in self._large[gpu]:
            # Implied, but in the linear relaxation a part of a copy has part of a GPU's time only.
            self._cp.add(work * served - PARTS * overload <= limit * ready)

    def _limit_hosts(self) -> None:
        asleep: dict[str, Terms] = defaultdict(list)
        for copy in self.problem.held:
            if (var := self._fate.get((copy.id, Fate.ASLEEP))) is not None:
                asleep[self.problem.node(*copy.gpus)].append((var, copy.host_mib))
        for node, terms in asleep.items():
            self._cp.add(_sum(terms) <= self.problem.usable_host_mib(node))

    # Solving

    def complete(self, placement: Placement) -> Found | None:
        """Return this placement, its demand served as well as may be; None if it is illegal."""
        self._cp.clear_hints()
        for (copy, fate), var in self._fate.items():
            self._cp.add_hint(var, placement.fates[copy] is fate)
        for model, loads in self._loads.items():
            chosen = placement.loads.get(model, ())
            for load in loads:
                here = [group for group in chosen if load.gpus.keys() >= set(group)]
                self._cp.add_hint(load.ready, bool(here))
                for gpu, var in load.gpus.items():
                    if var is not load.ready:
                        self._cp.add_hint(var, any(gpu in group for group in here))
        return self._run(Effort(), fixed=True)

    def improve(self, start: Found, effort: Effort) -> Found:
        """Return the best placement found by a search that begins at `start`."""
        self._cp.clear_hints()
        for index, value in enumerate(start.solution):
            self._cp.add_hint(self._cp.get_int_var_from_proto_index(index), value)
        found = self._run(effort)
        if found is None or found.plan.better_than(start.plan):
            return found or start
        return start._replace(plan=replace(start.plan, bound=found.plan.bound))

    def _run(self, effort: Effort, fixed: bool = False) -> Found | None:
        solver = cp_model.CpSolver()
        solver.parameters.catch_sigint_signal = False  # Ctrl-C ends the programme, not the solve
        solver.parameters.num_workers = effort.workers
        solver.parameters.linearization_level = 2  # the bound comes from the linear relaxation
        if not fixed:
            solver.parameters.subsolvers.extend(SEARCHES)
            # One worker takes turns, in a fixed order: as good a mixture, and the same everywhere.
            solver.parameters.interleave_search = effort.workers == 1
        solver.parameters.random_seed = effort.seed
        solver.parameters.max_deterministic_time = effort.work
        solver.parameters.max_time_in_seconds = effort.time_limit_s
        solver.parameters.fix_variables_to_their_hinted_value = fixed
        if solver.solve(self._cp) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        plan = self._plan(solver)
        if fixed:  # what the solver proved holds for this placement only
            plan = replace(plan, bound=self._ceiling)
        return Found(plan, tuple(solver.response_proto.solution), solver.wall_time)

    def _plan(self, solver: cp_model.CpSolver) -> Plan:
        missing = sum(solver.value(short) for short in self._missing)
        return Plan(
            fates={copy: fate for (copy, fate), var in self._fate.items() if solver.value(var)},
            new=tuple(
                New(model, group, load.kv_mib + self._extra_kv(solver, load))
                for model, loads in self._loads.items()
                for load in loads
                if solver.value(load.ready)
                and (group := tuple(gpu for gpu, var in load.gpus.items() if solver.value(var)))
            ),
            value=sum(value * solver.value(var) for var, value in self._gain),
            missing=missing,
            bound=round(solver.best_objective_bound) + missing * self._weight,
        )

    def _extra_kv(self, solver: cp_model.CpSolver, load: _Option) -> int:
        extra = self._extra.get(load.ready.index)
        return 0 if extra is None else solver.value(extra)


def _most(var: IntVar) -> int:
    return int(var.proto.domain[1])  # all domains here are one interval


def _sum(terms: Terms) -> Any:  # ortools' own union has no arithmetic
    return cp_model.LinearExpr.weighted_sum([var for var, _ in terms], [c for _, c in terms])
