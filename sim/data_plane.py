"""The Python side of the compiled world: builds its arrays, opens and closes instances in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelium.control.rules import never_fits
from modelium.control.state import Copy
from modelium.core import ClusterState, Demand, Gpu
from modelium.errors import ConfigError
from modelium.results.columns import counts
from modelium.results.record import COLD
from modelium.sim.inputs import SimInput
from modelium.sim.kernel import event_loop
from modelium.sim.kernel.arrays import (
    FAILED,
    GENERATE,
    HUNGRY,
    INFER,
    MODEL,
    NEXT,
    NONE,
    NOW,
    OPEN,
    SLOT,
    World,
)  # fmt: skip
from modelium.sim.kernel.build import make_world
from modelium.sim.kernel.heap import NEVER
from modelium.sim.kernel.outcomes import Outcomes, answers
from modelium.sim.kernel.world_pointer import keep
from modelium.sim.meters import ModelMeters, SlotCopy, Views
from modelium.sim.spec import Generate, Infer
from modelium.traces import Trace


class Plane:
    """The data plane of a simulated cluster. All times here are picoseconds."""

    HORIZON, MISS, IDLE = event_loop.HORIZON, event_loop.MISS, event_loop.IDLE

    def __init__(self, given: SimInput, trace: Trace) -> None:
        self.models = {model.name: k for k, model in enumerate(given.models)}
        self._names = list(self.models)
        self._gpus = {gpu.id: k for k, gpu in enumerate(given.gpus)}
        self._specs = _specs(given)
        self._rows = {pair: k for k, pair in enumerate(self._specs)}
        self.w: World = make_world(given, trace, self.models, self._specs)
        self._kept = keep(self.w)
        self._handle = self._kept.ctypes.data
        self._advance = event_loop.advance.at(self._handle)
        self._release = event_loop.release.at(self._handle)
        self._begin = event_loop.begin.at(self._handle)
        self._views = Views(self.w)
        self._at, self._arrival = self._views.at, self._views.arrival_ps
        self._requests = len(self._arrival)
        self._due, self._order = self.w.heap.due.data, self.w.heap.order.data
        self._free = list(range(self.w.kind.shape[0] - 1, -1, -1))
        self._copies: dict[int, Copy] = {}
        self._lanes: dict[tuple[str, ...], int] = {}
        self._in_order: set[int] = set()
        """Slots whose lane never reorders what reaches it, so long as it has its GPUs alone."""
        self._kv = {m.name: (m.kv_bytes, m.kv_bytes_per_token) for m in given.models}
        self.demand: Mapping[str, Demand] = {
            name: ModelMeters(self._views, k) for name, k in self.models.items()
        }

    # Time

    def advance(self, until_ps: int) -> int:
        """Run up to `until_ps` or the first thing that the control side must hear."""
        at = self._at
        if self._soonest() >= until_ps:  # nothing to do: not worth a call
            at[NOW] = max(at[NOW], until_ps)
            return event_loop.HORIZON
        return self._advance(until_ps)

    def _soonest(self) -> int:
        r, due = self._at[NEXT], self._due[self._order[0]]
        if r == self._requests:
            return due
        arrival = self._arrival[r]
        return arrival if arrival < due else due

    @property
    def now_ps(self) -> int:
        """Where the data plane is."""
        return self._at[NOW]

    def finished(self) -> bool:
        """All requests have arrived and are settled."""
        return self._at[OPEN] == 0 and self._at[NEXT] == self._requests

    def quiet(self) -> bool:
        """No engine works, and some model waits in vain: nothing will happen by itself."""
        return self._at[HUNGRY] > 0 and self._due[self._order[0]] == NEVER

    # Who waits

    def missed_model(self) -> str:
        """The model of the miss that stopped `advance`."""
        return self._names[self._at[MODEL]]

    def idle_slot(self) -> int:
        """The slot of the instance whose falling idle stopped `advance`."""
        return self._at[SLOT]

    def copy_in(self, slot: int) -> Copy | None:
        """The instance in a slot."""
        return self._copies.get(slot)

    def is_hungry(self, model: str) -> bool:
        """Requests wait for this model, and no instance is ready or on its way."""
        return bool(self._views.hungry[self.models[model]])

    def hungry_models(self) -> list[str]:
        """All such models, the longest wait first."""
        if not (number := self._at[HUNGRY]):
            return []
        found, flags = [-1], self._views.hungry.tobytes()
        for _ in range(number):
            found.append(flags.index(1, found[-1] + 1))
        return [self._names[m] for m in sorted(found[1:], key=self._waits_since)]

    def _waits_since(self, m: int) -> int:
        return self._arrival[self._views.first_waiting[m]]

    def waiting_models(self) -> Iterator[str]:
        """Models with requests that no ready instance can take."""
        return (self._names[m] for m in np.flatnonzero(self.w.n_waiting))

    def oldest_waiting_ps(self, model: str) -> int | None:
        """When the first waiting request of a model arrived; None if none waits."""
        m = self.models[model]
        return self._waits_since(m) if self._views.n_waiting[m] else None

    def expire(self, model: str, before_ps: int) -> None:
        """Reject what has waited since `before_ps`."""
        event_loop.expire(self._handle, self.models[model], before_ps)

    def set_coming(self, model: str, change: int) -> None:
        """An instance of `model` is on its way (+1), or no longer (-1): that sates its hunger."""
        of, at, m = self._views, self._at, self.models[model]
        of.coming[m] += change
        waits_in_vain = of.n_waiting[m] > 0 and of.n_ready[m] == 0
        hungry = of.coming[m] == 0 and (of.hungry[m] or waits_in_vain)
        if hungry != of.hungry[m]:
            of.hungry[m] = hungry
            at[HUNGRY] += 1 if hungry else -1

    def release(self, model: str, cold: str) -> None:
        """Send all that waits for `model` to its ready instances."""
        m = self.models[model]
        if self._views.n_waiting[m]:
            self._release(m, self.now_ps, COLD.index(cold))

    # What became of them

    def answers(self) -> Outcomes:
        """What became of each request, as the tables say it: once, at the end of the run."""
        return answers(self.w, self._handle)

    # Instances

    def admit(
        self, model: str, gpu: Gpu, gpus: tuple[str, ...], kv_bytes: int, number: int
    ) -> Copy:
        """Give a new instance a slot; it takes no requests until `open`."""
        w = self.w
        if not self._free:
            raise ConfigError(f"more than {len(w.kind)} instances at a time: {model} finds no slot")
        slot = self._free.pop()
        spec = self._specs[model, gpu.kind]
        w.number[slot], w.outstanding[slot], w.served[slot] = number, 0, 0
        w.hear[slot] = False
        w.last_used_ps[slot] = w.idle_since_ps[slot] = self.now_ps
        w.n_slot_gpus[slot] = len(gpus)
        w.interference[slot] = _interference(spec)
        for k, name in enumerate(gpus):
            w.slot_gpus[slot, k] = self._gpus[name]
        copy = SlotCopy(self._views, slot, f"{model}#{number}", model, gpus, gpu.node)
        if isinstance(spec, Generate):
            self._admit_engine(copy, spec, gpu.kind, kv_bytes)
        else:
            self._admit_lane(copy, spec)
        for name in gpus:
            g = self._gpus[name]
            w.on[g, w.n_on[g]] = slot
            w.n_on[g] += 1
        self._know_neighbours(gpus)
        self._copies[slot] = copy
        return copy

    def _admit_engine(self, copy: Copy, spec: Generate, kind: str, kv_bytes: int) -> None:
        w = self.w
        tokens, per_token = spec.kv_tokens, self._kv[copy.model][1]
        if per_token > 0 and kv_bytes != self._kv[copy.model][0]:
            tokens = kv_bytes // per_token
        w.kind[copy.slot], w.capacity[copy.slot] = GENERATE, spec.max_num_seqs
        self._begin(copy.slot, self._rows[copy.model, kind], tokens)

    def _admit_lane(self, copy: Copy, spec: Infer) -> None:
        lanes, slot = self.w.lanes, copy.slot
        self.w.kind[slot] = INFER
        self.w.capacity[slot] = spec.servers if spec.servers > 1 else len(spec.latency_s)
        lane = self._lanes.get(copy.gpus, -1) if spec.exclusive else -1
        if lane < 0:
            lane = slot
            while lanes.n_members[lane]:
                lane = (lane + 1) % len(lanes.n_members)
            self._open_lane(lane, copy, spec)
        elif (lanes.stages[lane], lanes.servers[lane]) != (len(spec.latency_s), spec.servers):
            raise ConfigError(
                f"{copy.model} shares {', '.join(copy.gpus)} with a model of other stages or "
                "servers: give both the same, or set exclusive: false"
            )
        lanes.lane[slot] = lane
        lanes.members[lane, lanes.n_members[lane]] = slot
        lanes.n_members[lane] += 1
        lanes.latency[slot] = 0.0
        for k, row in enumerate(spec.latency_s):
            lanes.latency[slot, k, : len(row)] = row
        lanes.per_token[slot] = spec.per_token_s
        lanes.max_batch[slot] = len(spec.latency_s[0])
        lanes.max_delay[slot] = spec.max_delay_s
        lanes.fixed[slot] = spec.fixed_s
        lanes.at_once[slot] = False  # of who had the slot before
        if len(spec.latency_s[0]) == 1 and spec.max_delay_s == 0 and lanes.head.shape[1] == 1:
            self._in_order.add(slot)
        lanes.head[slot], lanes.tail[slot], lanes.length[slot] = -1, -1, 0

    def _open_lane(self, lane: int, copy: Copy, spec: Infer) -> None:
        lanes = self.w.lanes
        if spec.exclusive:
            self._lanes[copy.gpus] = lane
        lanes.stages[lane], lanes.servers[lane] = len(spec.latency_s), spec.servers
        lanes.clock[lane], lanes.queued[lane] = 0.0, 0
        lanes.first[lane] = lanes.last[lane] = -1
        lanes.n_gpus[lane] = len(copy.gpus)
        for k, name in enumerate(copy.gpus):
            lanes.gpus[lane, k] = self._gpus[name]

    def _know_neighbours(self, gpus: tuple[str, ...]) -> None:
        """A finish is known on arrival where no neighbour can slow it down before it begins."""
        if not self._in_order:
            return
        w, lanes = self.w, self.w.lanes
        for g in (self._gpus[name] for name in gpus):
            for slot in self._in_order.intersection(w.on[g, : w.n_on[g]].tolist()):
                mine = lanes.n_members[lanes.lane[slot]]
                held = w.slot_gpus[slot, : w.n_slot_gpus[slot]].tolist()
                lanes.at_once[slot] = all(w.n_on.item(other) == mine for other in held)

    def open(self, copy: Copy) -> None:
        """The instance takes requests from now on."""
        w, m, slot = self.w, self.models[copy.model], copy.slot
        w.ready[m, w.n_ready[m]] = slot
        w.n_ready[m] += 1
        w.last_used_ps[slot] = w.idle_since_ps[slot] = self.now_ps

    def close(self, copy: Copy) -> None:
        """The instance takes no more requests; those it has go on."""
        _strike(self.w.ready, self.w.n_ready, self.models[copy.model], copy.slot)

    def hear_idle(self, copy: Copy) -> None:
        """Stop `advance` when this instance falls idle."""
        self.w.hear[copy.slot] = True

    def crash(self, copy: Copy, retries: int) -> None:
        """The instance is lost, and what it was working on is retried or fails."""
        if self.w.outstanding[copy.slot]:
            event_loop.crash(self._handle, copy.slot, self.now_ps, retries, FAILED)

    def dismiss(self, copy: Copy) -> None:
        """The instance is gone; its slot is free."""
        w, slot = self.w, copy.slot
        for name in copy.gpus:
            _strike(w.on, w.n_on, self._gpus[name], slot)
        if w.kind[slot] == INFER:
            lane = int(w.lanes.lane[slot])
            left = _strike(w.lanes.members, w.lanes.n_members, lane, slot)
            if not left and self._lanes.get(copy.gpus) == lane:
                del self._lanes[copy.gpus]
        w.kind[slot] = NONE
        self._in_order.discard(slot)
        self._know_neighbours(copy.gpus)
        del self._copies[slot]
        self._free.append(slot)

    def check_fits(self, state: ClusterState) -> None:
        """Refuse at once a model of the trace that can never run here."""
        for m in np.flatnonzero(counts(self.w.requests.model, len(self.models))):
            if why := never_fits(state, self._names[m]):
                raise ConfigError(why)


def _strike(rows: NDArray[Any], lengths: NDArray[Any], row: int, slot: int) -> int:
    """Take `slot` out of a row of slots, if it is there, and say how many are left."""
    slots = rows.data
    number: int = lengths.item(row)
    for k in range(number):
        if slots[row, k] == slot:
            for later in range(k + 1, number):
                slots[row, later - 1] = slots[row, later]
            lengths[row] = number - 1
            return number - 1
    return number


def _specs(given: SimInput) -> dict[tuple[str, str], Generate | Infer]:
    kinds = sorted({gpu.kind for gpu in given.gpus})
    specs = {(m.name, kind): given.engines(m, kind) for m in given.models for kind in kinds}
    for (model, _), spec in specs.items():
        if isinstance(spec, Infer):
            _check_lane(model, spec)
    return specs


def _check_lane(model: str, spec: Infer) -> None:
    """Refuse what the arrays of a lane cannot say: they have one clock a server, or a stage."""
    stages, sizes = len(spec.latency_s), [len(row) for row in spec.latency_s]
    if spec.servers > 1 and stages > 1:
        raise ConfigError(
            f"{model}: {spec.servers} servers and {stages} stages: only one server can be a "
            "pipeline. Set servers to 1 (replicas give more pipelines), or add the stages up into "
            "one row of latencies"
        )
    if not all(sizes) or len(set(sizes)) != 1:
        raise ConfigError(
            f"{model}: its stages have latencies for {', '.join(map(str, sizes)) or 'no'} batch "
            "sizes: give each stage one for every size, and at least one"
        )


def _interference(spec: Generate | Infer) -> float:
    return spec.step.interference if isinstance(spec, Generate) else spec.interference
