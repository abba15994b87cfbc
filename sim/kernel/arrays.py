"""The arrays of the compiled world: what `modelium.sim.kernel.event_loop` reads and writes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.sim.kernel.generate import Engines, Requests
from modelium.sim.kernel.heap import Heap
from modelium.sim.kernel.infer import Busy, Lanes

NOW, NEXT, HUNGRY, OPEN, MODEL, SLOT = range(6)
"""Places in `World.at`: the time, the next arrival, how many models are hungry, how many requests
have arrived and are not settled, and whom the last stop was about."""

ROUTER, QUEUE_LIMIT, ABSENT, DEADLINE = range(4)
"""Places in `World.option`."""

ROUTERS = ("least_outstanding", "round_robin", "shortest_queue", "session_affinity")
LEAST_OUTSTANDING, ROUND_ROBIN, SHORTEST_QUEUE, SESSION_AFFINITY = range(4)

UNFINISHED, COMPLETED, REJECTED, FAILED = range(4)
"""Values of `World.outcome`."""

NONE, GENERATE, INFER = range(3)
"""Values of `World.kind`."""


class World(NamedTuple):
    """Everything that the kernels know, by request, model, slot (an instance) and GPU."""

    at: NDArray[np.int64]
    option: NDArray[np.int64]
    rate_window_s: NDArray[np.float64]  # [1]
    heap: Heap
    engines: Engines
    lanes: Lanes
    busy: Busy
    requests: Requests
    done: NDArray[np.int64]  # scratch: requests that ended in a step

    # by request
    arrival_ps: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    slo_class: NDArray[np.int64]
    session: NDArray[np.int32]  # -1: none; empty: no request has one
    outcome: NDArray[np.int8]
    cold: NDArray[np.int8]
    retries: NDArray[np.int32]
    instance: NDArray[np.int32]
    slot_of: NDArray[np.int32]
    answer_s: NDArray[np.float64]
    first_s: NDArray[np.float64]  # at the end, in the place of requests.first_ps
    finish_s: NDArray[np.float64]  # likewise
    met: NDArray[np.bool_]  # its SLO; at the end, in the place of requests.place

    # by model
    ready: NDArray[np.int32]  # [model, k] slots that take requests
    n_ready: NDArray[np.int64]
    coming: NDArray[np.int64]  # instances that load or wake
    hungry: NDArray[np.bool_]
    first_waiting: NDArray[np.int32]
    last_waiting: NDArray[np.int32]
    n_waiting: NDArray[np.int64]
    arrivals: NDArray[np.int64]
    last_arrival_ps: NDArray[np.int64]
    rate: NDArray[np.float64]  # at the last arrival
    prompt_sum: NDArray[np.int64]
    output_sum: NDArray[np.int64]
    turn: NDArray[np.int64]
    slo: NDArray[np.float64]  # [model, class, (ttft, tpot, e2e)]

    # by slot
    kind: NDArray[np.int64]
    number: NDArray[np.int64]  # of the instance that has the slot
    outstanding: NDArray[np.int64]
    capacity: NDArray[np.int64]  # requests that it can work on at a time
    served: NDArray[np.int64]
    last_used_ps: NDArray[np.int64]
    idle_since_ps: NDArray[np.int64]
    hear: NDArray[np.bool_]  # tell the control side when it falls idle
    interference: NDArray[np.float64]
    slot_gpus: NDArray[np.int64]  # [slot, k]
    n_slot_gpus: NDArray[np.int64]

    # by lane, by GPU
    lane_load: NDArray[np.int64]
    busy_units: NDArray[np.int64]  # engines and lanes at work on a GPU
    busy_engines: NDArray[np.int64]
    busy_since_ps: NDArray[np.int64]
    on: NDArray[np.int64]  # [gpu, k] slots
    n_on: NDArray[np.int64]


class Sizes(NamedTuple):
    """How large the arrays are."""

    requests: int
    models: int
    classes: int
    slots: int
    copies: int
    """Ready instances of one model."""
    gpus: int
    gpus_per_slot: int
    stages: int
    servers: int
    batch: int
    members: int
    """Instances that share a lane."""
    bins: int


def make_lanes(n: Sizes) -> Lanes:
    """Lanes with nothing in them; there is at most one a slot."""
    width = max(n.stages, n.servers)
    i64, i32, f64 = np.int64, np.int32, np.float64
    return Lanes(
        clock=np.zeros((n.slots, width), f64),
        first=np.full((n.slots, n.servers), -1, i32),
        last=np.full((n.slots, n.servers), -1, i32),
        stages=np.ones(n.slots, i64),
        servers=np.ones(n.slots, i64),
        queued=np.zeros(n.slots, i64),
        timer=np.full(n.slots, np.iinfo(i64).max, i64),
        members=np.zeros((n.slots, n.members), i64),
        n_members=np.zeros(n.slots, i64),
        gpus=np.zeros((n.slots, n.gpus_per_slot), i64),
        n_gpus=np.zeros(n.slots, i64),
        lane=np.zeros(n.slots, i64),
        latency=np.zeros((n.slots, max(1, n.stages), max(1, n.batch)), f64),
        per_token=np.zeros(n.slots, f64),
        max_batch=np.ones(n.slots, i64),
        max_delay=np.zeros(n.slots, f64),
        fixed=np.zeros(n.slots, f64),
        at_once=np.zeros(n.slots, np.bool_),
        head=np.full((n.slots, n.classes), -1, i32),
        tail=np.full((n.slots, n.classes), -1, i32),
        length=np.zeros(n.slots, i64),
    )
