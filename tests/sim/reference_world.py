"""The world of arrivals, routing, waiting rooms and engines in plain Python.

This is the text that `modelium.sim.kernel.event_loop` must equal to the bit: at each turn of the
loop whatever is due next happens, and everything that follows from the present state is computed
from it anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, inf, nan

from reference_generate import ReferenceEngine, Sequence
from reference_infer import NEVER, Job, ReferenceLane

from modelium.sim.spec import Generate, Infer

HORIZON, MISS, IDLE = "horizon", "miss", "idle"


class TieError(Exception):
    """An engine falls idle at the very picosecond at which a neighbour's iteration ends.

    Whether that neighbour's next iteration is slowed down depends on who is looked at first; either
    is right, and the compiled world does not look at iterations that change nothing.
    """


@dataclass(eq=False)
class Request:
    """A request: what it asks for, and what became of it."""

    id: int
    model: str
    arrival_s: float
    arrival_ps: int
    seq: Sequence
    job: Job
    session: int = -1
    outcome: str = "unfinished"
    cold: str = ""
    retries: int = 0
    instance: int = -1

    @property
    def times(self) -> tuple[int, int, float]:
        """First and last token of a language model (ps); end and answer (s) of another."""
        if self.job.finish_ps >= 0:
            return -1, self.job.finish_ps, self.job.answer_s
        return self.seq.first_ps, self.seq.finish_ps, nan


@dataclass(eq=False)
class Instance:
    """One copy of a model. `place` breaks ties between engines that are due at once."""

    model: str
    spec: Generate | Infer
    gpus: tuple[str, ...]
    number: int
    place: int
    engine: ReferenceEngine | None = None
    lane: ReferenceLane | None = None
    has: list[Request] = field(default_factory=list)
    """What was sent here and has not left."""
    served: int = 0
    last_used_ps: int = 0
    idle_since_ps: int = 0
    hear: bool = False

    @property
    def interference(self) -> float:
        return getattr(self.spec, "step", self.spec).interference

    @property
    def seats(self) -> int:
        """Requests that it can work on at a time."""
        if isinstance(self.spec, Generate):
            return self.spec.max_num_seqs
        return self.spec.servers if self.spec.servers > 1 else len(self.spec.latency_s)


@dataclass
class ReferenceWorld:
    """Everything, between two looks of the control side."""

    requests: list[Request]
    e2e_slo_s: dict[str, float]
    router: str
    queue_limit: int
    reject_absent: bool
    deadline: bool
    classes: int
    places: int
    """How many instances there may be."""
    now: int = 0
    arrived: int = 0
    instances: list[Instance] = field(default_factory=list)
    ready: dict[str, list[Instance]] = field(default_factory=dict)
    coming: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, list[Request]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    missed: str = ""
    idle: Instance | None = None
    engine_busy: dict[str, int] = field(default_factory=dict)
    """GPUs on which some language model works, and since when."""
    worked: list[tuple[str, float, float, float]] = field(default_factory=list)

    # Time

    def advance(self, until: int) -> str:
        """Run up to, not including, `until`, or to what the control side must hear."""
        while True:
            units = sorted(self._units(), key=lambda unit: unit[:2])
            due, _, unit = units[0] if units else (NEVER, (2, 0), None)
            arrival = NEVER
            if self.arrived < len(self.requests):
                arrival = self.requests[self.arrived].arrival_ps
            if min(arrival, due) >= until:
                self.now = max(self.now, until)
                return HORIZON
            if arrival <= due:
                if self._arrive(self.requests[self.arrived]):
                    return MISS
            elif self._work(unit, due):
                return IDLE

    def _units(self) -> Iterable[tuple[int, tuple[int, int], ReferenceEngine | ReferenceLane]]:
        """All that works, by when it is due; engines come before lanes."""
        for instance in self.instances:
            if instance.engine:
                yield instance.engine.due_ps, (0, instance.place), instance.engine
            elif instance.lane.members[0] is instance:
                yield instance.lane.due_ps, (1, instance.lane.place), instance.lane

    def _arrive(self, request: Request) -> bool:
        self.now, self.arrived = request.arrival_ps, self.arrived + 1
        model = request.model
        if self.ready.get(model):
            self.dispatch(request)
        elif self.reject_absent or len(self.waiting.get(model, [])) >= self.queue_limit:
            request.outcome = "rejected"
        else:
            before = self.hungry()
            self.waiting.setdefault(model, []).append(request)
            if self.hungry() != before:
                self.missed = model
                return True
        return False

    def _work(self, unit: ReferenceEngine | ReferenceLane, now: int) -> bool:
        self.now = now
        if isinstance(unit, ReferenceLane):
            ended = [self.requests[job.id] for _, job in unit.step(now, self.slow)]
        else:
            unit.slow = self.slow(next(i for i in self.instances if i.engine is unit))
            ended = [self.requests[seq.id] for seq in unit.step()]
        heard = False
        for request in ended:
            request.outcome = "completed"
            instance = next(i for i in self.instances if request in i.has)
            if self._leave(instance, request):
                self._check_tie(instance)
                if self.hungry() or instance.hear:
                    self.idle, heard = instance, True
        return heard

    def _check_tie(self, instance: Instance) -> None:
        for other in self.instances:
            if other.engine and other.has and other is not instance:
                at_once = self.now in (other.engine.start_ps, other.engine.due_ps)
                if at_once and set(other.gpus) & set(instance.gpus):
                    raise TieError

    # Requests on their way

    def hungry(self) -> set[str]:
        """Models that wait with nothing ready or on its way."""
        return {
            model
            for model, waiting in self.waiting.items()
            if waiting and not self.ready.get(model) and not self.coming.get(model)
        }

    def dispatch(self, request: Request) -> None:
        """To a ready instance, or away."""
        instance = self._route(request)
        now_s = request.arrival_s if request.arrival_ps == self.now else self.now / 1e12
        if (
            len(instance.has) >= instance.seats + self.queue_limit
            or (self.deadline and not self._in_time(instance, request, now_s))
            or not self._fits(instance, request)
        ):
            request.outcome = "rejected"
            return
        request.instance = instance.number
        instance.has.append(request)
        instance.served += 1
        instance.last_used_ps = self.now
        self._note_busy()
        if instance.engine:
            instance.engine.put(request.seq, self.now)
            return
        slow = self.slow(instance)
        instance.lane.put(instance, request.job, now_s, slow, self._in_order(instance))

    def _route(self, request: Request) -> Instance:
        ready = self.ready[request.model]
        if len(ready) == 1:
            return ready[0]
        if self.router == "round_robin":
            turn = self.turns.get(request.model, 0)
            self.turns[request.model] = turn + 1
            return ready[turn % len(ready)]
        if self.router == "session_affinity" and request.session >= 0:
            return max(ready, key=lambda i: _weight(request.session, i.number))
        if self.router == "shortest_queue":
            return min(ready, key=_queue)
        return min(ready, key=lambda i: len(i.has))

    def _in_time(self, instance: Instance, request: Request, now_s: float) -> bool:
        limit_s = self.e2e_slo_s[request.model]
        if instance.engine:
            assert limit_s == inf, "how a language model's time is predicted has its own test"
            return True
        slow = self.slow(instance)
        answer_s = instance.lane.predict(instance, request.job.tokens, now_s, slow)
        return answer_s - request.arrival_s <= limit_s

    def _fits(self, instance: Instance, request: Request) -> bool:
        if not instance.engine:
            return True
        tokens = request.seq.prompt + max(request.seq.output, 1) - 1
        longest = instance.spec.max_model_len
        if longest is not None and tokens + 1 > longest:
            return False
        block = instance.spec.block_tokens
        return -(-tokens // block) <= instance.spec.kv_tokens // block

    def _in_order(self, instance: Instance) -> bool:
        """Nobody can come between a request that reaches its lane now and its answer."""
        spec, lane = instance.spec, instance.lane
        strangers = [
            other
            for other in self.instances
            if other.lane is not lane and set(other.gpus) & set(lane.gpus)
        ]
        one = len(spec.latency_s[0]) == 1 and spec.max_delay_s == 0 and self.classes == 1
        return one and not strangers

    def _leave(self, instance: Instance, request: Request) -> bool:
        instance.has.remove(request)
        self._note_busy()
        if instance.has:
            return False
        instance.idle_since_ps = self.now
        return True

    # Sharing of GPUs

    def slow(self, instance: Instance) -> int:
        """Fair shares among all that works on its busiest GPU, plus interference."""
        units = 1
        for gpu in instance.gpus:
            here = [i for i in self.instances if gpu in i.gpus and i.has]
            lanes = {id(i.lane) for i in here if i.lane}
            units = max(units, len(lanes) + sum(i.engine is not None for i in here))
        return round(1024 * units * (1 + instance.interference * (units - 1)))

    def _note_busy(self) -> None:
        """Write down when GPUs begin and end to work for language models."""
        gpus = {gpu for i in self.instances if i.engine and i.has for gpu in i.gpus}
        for gpu in gpus - self.engine_busy.keys():
            self.engine_busy[gpu] = self.now
        for gpu in self.engine_busy.keys() - gpus:
            begin = self.engine_busy.pop(gpu)
            self.worked.append((gpu, begin / 1e12, self.now / 1e12, 1.0))

    # What the control side does

    def admit(self, instance: Instance) -> None:
        """A new instance, which takes no requests yet. Those that take turns share a lane."""
        instance.last_used_ps = instance.idle_since_ps = self.now
        self.instances.append(instance)
        if isinstance(instance.spec, Generate):
            instance.engine = ReferenceEngine(instance.spec)
            return
        for other in self.instances:
            both = other.lane and other.spec.exclusive and instance.spec.exclusive
            if both and other.gpus == instance.gpus:
                instance.lane = other.lane
        if instance.lane is None:
            stages, servers = len(instance.spec.latency_s), instance.spec.servers
            instance.lane = ReferenceLane(stages, servers, instance.gpus)
            instance.lane.place = instance.place
            taken = {i.lane.place for i in self.instances[:-1] if i.lane}
            while instance.lane.place in taken:
                instance.lane.place = (instance.lane.place + 1) % self.places
        instance.lane.members.append(instance)

    def set_coming(self, model: str, change: int) -> None:
        self.coming[model] = self.coming.get(model, 0) + change

    def open(self, instance: Instance) -> None:
        self.ready.setdefault(instance.model, []).append(instance)
        instance.last_used_ps = instance.idle_since_ps = self.now

    def close(self, instance: Instance) -> None:
        ready = self.ready.get(instance.model, [])
        self.ready[instance.model] = [other for other in ready if other is not instance]

    def release(self, model: str, cold: str) -> None:
        for request in self.waiting.pop(model, []):
            request.cold = cold
            self.dispatch(request)

    def expire(self, model: str, before_ps: int) -> None:
        while self.waiting.get(model) and self.waiting[model][0].arrival_ps <= before_ps:
            self.waiting[model].pop(0).outcome = "rejected"

    def crash(self, instance: Instance, retries: int) -> None:
        """It is lost; what it had begun is begun elsewhere, if not too often."""
        lost = sorted(instance.has, key=lambda request: request.id)
        if instance.engine:
            instance.engine.drop()
        else:
            instance.lane.drop(instance)
        for request in lost:
            self._leave(instance, request)
            request.seq.first_ps = request.seq.finish_ps = request.job.finish_ps = -1
            request.job.answer_s = nan
            if request.retries >= retries:
                request.outcome = "failed"
                continue
            request.retries += 1
            if self.ready.get(request.model):
                self.dispatch(request)
            else:
                self.waiting.setdefault(request.model, []).append(request)

    def dismiss(self, instance: Instance) -> None:
        self.instances.remove(instance)
        if instance.lane:
            self.worked += instance.lane.worked
            instance.lane.worked.clear()
            instance.lane.members.remove(instance)

    # What policies read

    def rate_per_s(self, model: str, window_s: float) -> float:
        """Every arrival counts 1/window, less the older it is."""
        came = [r.arrival_ps for r in self.requests[: self.arrived] if r.model == model]
        return sum(exp(-(self.now - at) / 1e12 / window_s) / window_s for at in came)


def _queue(instance: Instance) -> float:
    if instance.engine:
        return instance.engine.backlog_tokens()
    return instance.lane.last_free_s()


def _weight(session: int, number: int) -> int:
    """Highest random weight: a hash of session and instance in 64 bits."""
    x = session * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    x ^= number * 0xC2B2AE3D27D4EB4F & (1 << 64) - 1
    x ^= x >> 29
    x = x * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return x ^ x >> 32
