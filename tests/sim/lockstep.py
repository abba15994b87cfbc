"""The compiled world and the plain one, led through the same plot and compared at every stop."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from reference_generate import Sequence
from reference_infer import Job
from reference_world import HORIZON, IDLE, MISS, Instance, ReferenceWorld, Request, TieError

from modelium.core import Gpu, Model, Node, Slo
from modelium.results.record import COLD
from modelium.sim import SimInput
from modelium.sim.data_plane import Plane
from modelium.sim.kernel.arrays import OPEN, ROUTERS
from modelium.sim.kernel.outcomes import OUTCOME_NAMES
from modelium.sim.results import check_conservation
from modelium.sim.spec import Admission, Generate, Infer, Settings, StepTime
from modelium.traces import Trace
from modelium.traces.trace import Labels
from modelium.units import ps

LAST = 2**62
WHY = {Plane.HORIZON: HORIZON, Plane.MISS: MISS, Plane.IDLE: IDLE}
INTERFERENCE = st.sampled_from([0.0, 0.0, 0.1, 0.37])


def steps(unit_s: float, coefficients: list[int], interference: float) -> StepTime:
    """Step times of a few units, so that iterations and events often fall on one instant."""
    c = [x * unit_s for x in coefficients]
    more = unit_s + 1e-12 * coefficients[9]
    return StepTime(
        c[0] + more, c[1], c[2], 3, c[3], c[4] + more, c[5], c[6], 6, c[7], c[8],
        interference=interference,
    )  # fmt: skip


@st.composite
def engines(draw: st.DrawFn, unit_s: float, stages: int, servers: int) -> Generate | Infer:
    """A language model, or one that answers whole batches."""
    if draw(st.booleans()):
        seqs, block = draw(st.integers(1, 4)), draw(st.sampled_from([1, 4]))
        coefficients = draw(st.lists(st.integers(0, 6), min_size=10, max_size=10))
        return Generate(
            steps(unit_s, coefficients, draw(INTERFERENCE)),
            kv_tokens=draw(st.sampled_from([16, 24, 40])),
            max_num_seqs=seqs,
            max_batched_tokens=seqs + draw(st.integers(0, 20)),
            block_tokens=block,
            max_model_len=draw(st.sampled_from([None, 5, 9])),
        )
    most = draw(st.integers(1, 3))
    times = st.lists(st.integers(0, 30).map(lambda k: k * unit_s), min_size=most, max_size=most)
    return Infer(
        tuple(tuple(sorted(draw(times))) for _ in range(stages)),
        per_token_s=draw(st.integers(0, 2)) * unit_s,
        max_delay_s=draw(st.sampled_from([0, 0, 7, 40])) * unit_s,
        servers=servers,
        exclusive=draw(st.sampled_from([True, True, False])),
        fixed_s=draw(st.integers(0, 3)) * unit_s,
        interference=draw(INTERFERENCE),
    )


ASKED = st.tuples(
    st.integers(0, 3), st.integers(1, 14), st.integers(0, 14),  # model, prompt, output
    st.integers(0, 1), st.integers(-1, 3), st.integers(-1, 1),  # class, session, prefix
)  # fmt: skip


@st.composite
def plots(draw: st.DrawFn) -> dict[str, Any]:
    """A cluster, what is asked of it, and what its control side does when."""
    unit_s = draw(st.sampled_from([1e-12, 0.37e-3]))
    stages, servers = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]))
    gpus, models = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    when = st.integers(0, draw(st.sampled_from([0, 60, 600])))
    classes, deadline = draw(st.sampled_from([(1, False), (1, True), (2, False)]))
    value = st.integers(0, 11)
    begin = draw(st.lists(value, min_size=1, max_size=7))
    act = st.sampled_from(["load", "load", "ready", "ready", "fail", "crash", "drain", "expire"])
    acts = draw(st.lists(st.tuples(when, act, value), max_size=16))
    return {
        "unit_s": unit_s,
        "gpus": gpus,
        "engines": [draw(engines(unit_s, stages, servers)) for _ in range(models)],
        "widths": [draw(st.integers(1, min(gpus, 2))) for _ in range(models)],
        "slo": draw(st.integers(5, 60)),
        "classes": classes,
        "router": draw(st.sampled_from(ROUTERS)),
        "admission": Admission(
            queue_limit=draw(st.sampled_from([0, 2, *[10**9] * 5])),
            deadline=deadline,
            absent=draw(st.sampled_from([*["wait"] * 5, "reject"])),
        ),
        "asked": sorted(draw(st.lists(st.tuples(when, ASKED), min_size=8, max_size=40))),
        "begin": begin,
        "acts": sorted(acts, key=lambda act: act[0]),
        "retries": draw(st.integers(0, 2)),
        "eager": draw(st.booleans()),
    }


class Both:
    """The compiled world and the plain one, led through the same plot."""

    def __init__(self, plot: dict[str, Any]) -> None:
        self.plot = plot
        self.unit_s = plot["unit_s"]
        self.specs = {f"m{k}": spec for k, spec in enumerate(plot["engines"])}
        self.names = list(self.specs)
        self.width = dict(zip(self.names, plot["widths"], strict=True))
        self.given = self._given()
        self.trace = self._trace()
        self.plane = Plane(self.given, self.trace)
        self.world = self._plain()
        self.live: list[tuple[Any, Instance, str]] = []
        """Copies, there and here, and how they are: coming, ready or closed."""
        self.number = 0
        self.seen: Counter[str] = Counter()

    def _given(self) -> SimInput:
        plot = self.plot
        tight = Slo(e2e_s=plot["slo"] * self.unit_s)
        one_piece = {name: isinstance(spec, Infer) for name, spec in self.specs.items()}
        return SimInput(
            nodes=[Node("n0")],
            gpus=[Gpu(f"g{k}", "n0", 6) for k in range(plot["gpus"])],
            models=[
                Model(name, 1, gpus=self.width[name], slo=tight if one_piece[name] else Slo())
                for name in self.names
            ],
            engines=lambda model, kind: self.specs[model.name],
            work=lambda model, kind, prompt, output: 1.0,
            settings=Settings(router=plot["router"], admission=plot["admission"]),
            slo_classes={"a": Slo(), "b": Slo()} if plot["classes"] == 2 else {},
        )

    def _trace(self) -> Trace:
        at = np.array([at for at, _ in self.plot["asked"]], float) * self.unit_s
        columns = np.array([asked for _, asked in self.plot["asked"]], np.int32)
        model, prompt, output, cls, session, prefix = columns.T
        return Trace(
            at, Labels(model % len(self.names), tuple(self.names)), prompt, output,
            slo_class=Labels(cls, ("a", "b")) if self.plot["classes"] == 2 else None,
            session=Labels(session, ("s0", "s1", "s2", "s3")),
            prefix_id=Labels(prefix, ("p0", "p1")), prefix_tokens=prompt // 2,
        )  # fmt: skip

    def _plain(self) -> ReferenceWorld:
        admission, classes = self.plot["admission"], self.plot["classes"]
        requests = []
        for r, (at, asked) in enumerate(self.plot["asked"]):
            model, prompt, output, cls, session, prefix = asked
            at_s = at * self.unit_s
            seq = Sequence(r, prompt, output, prefix, prompt // 2)
            job = Job(r, prompt, cls if classes == 2 else 0, at_s)
            name = self.names[model % len(self.names)]
            requests.append(Request(r, name, at_s, ps(at_s), seq, job, session))
        slos = {model.name: model.slo.e2e_s for model in self.given.models}
        return ReferenceWorld(
            requests, slos, self.plot["router"], admission.queue_limit,
            admission.absent == "reject", admission.deadline, classes, len(self.plane.w.kind),
        )  # fmt: skip

    # What the control side does, to both

    def load(self, value: int, model: str = "") -> None:
        if len(self.live) >= 8:
            return
        model = model or self.names[value % len(self.names)]
        gpus = tuple(f"g{(value + k) % self.plot['gpus']}" for k in range(self.width[model]))
        self.number += 1
        first = self.given.gpus[int(gpus[0][1:])]
        copy = self.plane.admit(model, first, gpus, 0, self.number)
        mine = Instance(model, self.specs[model], gpus, self.number, copy.slot)
        self.world.admit(mine)
        for side in (self.plane, self.world):
            side.set_coming(model, 1)
        self.live.append((copy, mine, "coming"))

    def ready(self, value: int) -> None:
        if found := self._pick(value, "coming"):
            copy, mine = found
            for side, it in ((self.plane, copy), (self.world, mine)):
                side.open(it)
                side.set_coming(mine.model, -1)
                side.release(mine.model, COLD[value % len(COLD)])
            self.live.append((copy, mine, "ready"))

    def fail(self, value: int) -> None:
        if found := self._pick(value, "coming"):
            copy, mine = found
            for side, it in ((self.plane, copy), (self.world, mine)):
                side.set_coming(mine.model, -1)
                side.dismiss(it)

    def crash(self, value: int) -> None:
        if found := self._pick(value, "ready", "closed"):
            self.seen["busy copy crashed"] += found[0].busy
            for side, it in zip((self.plane, self.world), found, strict=True):
                side.close(it)
                side.crash(it, self.plot["retries"])
                side.dismiss(it)

    def drain(self, value: int) -> None:
        if found := self._pick(value, "ready"):
            copy, mine = found
            self.plane.close(copy)
            self.plane.hear_idle(copy)
            self.world.close(mine)
            mine.hear = True
            self.live.append((copy, mine, "closed"))
            self.sweep()

    def expire(self, value: int) -> None:
        model = self.names[value % len(self.names)]
        before = self.world.now - ps(value * 5 * self.unit_s)
        if value % 3 and self.world.waiting.get(model):  # those that came at this very instant, too
            before = self.world.waiting[model][0].arrival_ps
        for side in (self.plane, self.world):
            side.expire(model, before)

    def _pick(self, value: int, *phases: str) -> tuple[Any, Instance] | None:
        found = [entry for entry in self.live if entry[2] in phases]
        if not found:
            return None
        entry = found[value % len(found)]
        self.live.remove(entry)
        return entry[:2]

    def sweep(self) -> None:
        """What was drained and is idle goes."""
        for entry in [entry for entry in self.live if entry[2] == "closed"]:
            if not entry[1].has:
                self.plane.dismiss(entry[0])
                self.world.dismiss(entry[1])
                self.live.remove(entry)

    # Both are compared

    def advance(self, until: int) -> None:
        """Let both run up to `until`, and look at them at every stop."""
        why = ""
        while why != HORIZON:
            why = WHY[self.plane.advance(until)]
            assert why == self.world.advance(until)
            self.seen[why] += 1
            if why == MISS:
                assert self.plane.missed_model() == self.world.missed
                if self.plot["eager"]:
                    self.load(self.number, self.world.missed)
                    self.ready(len(self.live) + 1)
            elif why == IDLE:
                assert self.plane.idle_slot() == self.world.idle.place
            self.sweep()
            self.look()

    def look(self) -> None:
        w, world = self.plane.w, self.world
        assert self.plane.now_ps == world.now
        assert set(self.plane.hungry_models()) == world.hungry()
        self.seen["shared"] += any(world.slow(mine) > 1024 for _, mine, _ in self.live)
        came = world.requests[: world.arrived]
        assert w.at[OPEN] == sum(r.outcome == "unfinished" for r in came)
        for name in self.names:
            waiting = world.waiting.get(name, [])
            demand = self.plane.demand[name]
            assert demand.waiting == len(waiting)
            assert self.plane.oldest_waiting_ps(name) == next((r.arrival_ps for r in waiting), None)
            assert demand.request_rate_per_s == pytest.approx(world.rate_per_s(name, 60.0))
        for copy, mine, _ in self.live:
            assert copy.meters.served == mine.served
            assert w.outstanding[copy.slot] == len(mine.has)
            assert w.last_used_ps[copy.slot] == mine.last_used_ps
            assert w.idle_since_ps[copy.slot] == mine.idle_since_ps
            if mine.engine:
                assert copy.meters.waiting == len(mine.engine.waiting)
            elif mine.has:
                queue = [job for owner, job in mine.lane.queue if owner is mine]
                assert copy.meters.waiting == len(queue)

    def compare_requests(self) -> None:
        w = self.plane.w
        for r, plain in enumerate(self.world.requests):
            assert OUTCOME_NAMES[int(w.outcome[r])] == plain.outcome
            assert COLD[w.cold[r]] == plain.cold
            assert w.retries[r] == plain.retries
            assert w.instance[r] == plain.instance
            assert w.requests.preemptions[r] == plain.seq.preemptions
            assert w.requests.cached[r] == plain.seq.cached
            ours = w.requests.first_ps[r], w.requests.finish_ps[r], w.answer_s[r]
            assert np.array_equal(ours, plain.times, equal_nan=True)

    def compare_work(self) -> None:
        """GPU-seconds of work, bin by bin."""
        busy, world = self.plane.w.busy, self.world
        for mine in world.instances:
            if mine.lane and mine.lane.members[0] is mine:
                world.worked += mine.lane.worked
        width, bins = busy.width_s[0], busy.seconds.shape[1]
        edges = np.arange(bins) * width
        for g in range(self.plot["gpus"]):
            exact = np.zeros(bins)
            for gpu, begin, end, share in world.worked:
                if gpu == f"g{g}":
                    inside = np.minimum(end, edges + width) - np.maximum(begin, edges)
                    exact += share * np.maximum(inside, 0)
            assert np.allclose(busy.seconds[g], exact, rtol=1e-6, atol=1e-14)


def play(plot: dict[str, Any]) -> Both:
    """Lead both through the plot to its end."""
    both = Both(plot)
    for value in plot["begin"]:
        both.load(value)
        both.ready(0)
    try:
        for at, act, value in plot["acts"]:
            both.advance(ps(at * both.unit_s))
            getattr(both, act)(value)
            both.look()
        both.advance(LAST)
    except TieError:
        both.seen["tie"] += 1
        return both
    both.compare_requests()
    both.compare_work()
    check_conservation(both.plane.w)
    return both
