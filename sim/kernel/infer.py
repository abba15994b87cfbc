"""The compiled engine for models that answer in one piece: dynamic batching, pipeline stages.

A *lane* executes batches: it has `servers` executors (Triton's instance groups) or, with one
executor, a pipeline of stages that overlap. Instances on the same GPUs share a lane and take turns
by the arrival of their oldest request; an instance that shares time instead has a lane of its own.

Where nothing is ever reordered (batches of one, no delay, no classes, no stranger on the GPUs, no
queue before it) a request's finish is known on arrival and computed at once, in the same order of
float operations as AlpaServe's simulator (Li et al., OSDI'23, `simulate_requests_mixed`). Otherwise
batches are formed when a server is free. Clocks are float seconds here, exact where the other
simulator's are. `tests/sim/reference_infer.py` says the same in plain Python.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelium.sim.jit.decorators import inlined, kernel
from modelium.sim.jit.hints import index
from modelium.sim.kernel.heap import NEVER

PS = 1e12
FULL_SPEED = 1024
"""Slow-down factors are fixed-point numbers over this."""


class Lanes(NamedTuple):
    """Arrays by lane, by slot (an instance), or by both's dimensions."""

    clock: NDArray[np.float64]  # [lane, server or stage] when it is free again, s
    first: NDArray[np.int32]  # [lane, server] oldest request in flight, -1 none
    last: NDArray[np.int32]
    stages: NDArray[np.int64]  # [lane]
    servers: NDArray[np.int64]  # [lane]
    queued: NDArray[np.int64]  # [lane] requests not yet in a batch
    timer: NDArray[np.int64]  # [lane] when an incomplete batch must go, ps
    members: NDArray[np.int64]  # [lane, k] slots
    n_members: NDArray[np.int64]  # [lane]
    gpus: NDArray[np.int64]  # [lane, k]
    n_gpus: NDArray[np.int64]  # [lane]
    lane: NDArray[np.int64]  # [slot]
    latency: NDArray[np.float64]  # [slot, stage, batch - 1] s
    per_token: NDArray[np.float64]  # [slot] s
    max_batch: NDArray[np.int64]  # [slot]
    max_delay: NDArray[np.float64]  # [slot] s
    fixed: NDArray[np.float64]  # [slot] s
    at_once: NDArray[np.bool_]  # [slot] finish known on arrival, if nobody queues
    head: NDArray[np.int32]  # [slot, class] queue of requests, -1 none
    tail: NDArray[np.int32]
    length: NDArray[np.int64]  # [slot] requests in its queues


class Busy(NamedTuple):
    """GPU-seconds of work by time bin: what the timeline shows as busy."""

    seconds: NDArray[np.float64]  # [gpu, bin]
    width_s: NDArray[np.float64]  # [1]


@inlined
def add_busy(busy, gpu, start_s, end_s, weight):
    """Spread `end - start` seconds of work over the bins that they fall into."""
    width, last = busy.width_s[0], busy.seconds.shape[1] - 1
    k = min(int(start_s / width), last)
    while end_s > (k + 1) * width and k < last:
        busy.seconds[gpu, k] += ((k + 1) * width - start_s) * weight
        start_s = (k + 1) * width
        k += 1
    busy.seconds[gpu, k] += (end_s - start_s) * weight


@inlined
def slow_factor(units, interference):
    """Fair time sharing of `units` engines, plus interference for each neighbour."""
    if units == 1:
        return FULL_SPEED
    return int(np.rint(FULL_SPEED * units * (1.0 + interference * (units - 1))))


@inlined
def first_free(lanes, lane):
    """The server of a lane that is free first."""
    best = 0
    for server in range(1, lanes.servers[lane]):
        if lanes.clock[lane, server] < lanes.clock[lane, best]:
            best = server
    return best


@inlined
def _stage_time(lanes, slot, stage, size, tokens, slow):
    """Seconds that a batch of `size` requests takes in `stage`."""
    t = lanes.latency[slot, stage, size - 1] + lanes.per_token[slot] * tokens
    return t if slow == FULL_SPEED else t * slow / FULL_SPEED


@inlined
def predict(lanes, slot, tokens, now_s, slow):
    """When a request arriving now would be answered (a lower bound where batches are formed)."""
    lane = index(lanes.lane[slot])
    if lanes.servers[lane] > 1:
        free = lanes.clock[lane, first_free(lanes, lane)]
        t = max(now_s, free) + _stage_time(lanes, slot, 0, 1, tokens, slow)
    else:
        t = now_s
        for k in range(lanes.stages[lane]):
            t = max(t, lanes.clock[lane, k]) + _stage_time(lanes, slot, k, 1, tokens, slow)
    if lanes.queued[lane] > 0:
        ahead = lanes.queued[lane] // (lanes.max_batch[slot] * lanes.servers[lane])
        t += ahead * _stage_time(lanes, slot, 0, lanes.max_batch[slot], 0, slow)
    return t + lanes.fixed[slot]


@inlined
def _execute(lanes, busy, slot, size, tokens, now_s, slow):
    """Commit a batch to the lane: return its server and when it leaves the last stage."""
    lane = index(lanes.lane[slot])
    if lanes.servers[lane] > 1:
        server = first_free(lanes, lane)
        start = max(now_s, lanes.clock[lane, server])
        t = start + _stage_time(lanes, slot, 0, size, tokens, slow)
        lanes.clock[lane, server] = t
        for g in range(lanes.n_gpus[lane]):
            add_busy(busy, lanes.gpus[lane, g], start, t, 1.0 / lanes.servers[lane])
        return server, t
    t = now_s
    stages, gpus = lanes.stages[lane], lanes.n_gpus[lane]
    for k in range(stages):
        start = max(t, lanes.clock[lane, k])
        t = start + _stage_time(lanes, slot, k, size, tokens, slow)
        lanes.clock[lane, k] = t
        first = k * gpus // stages
        for g in range(first, max(first + 1, (k + 1) * gpus // stages)):
            add_busy(busy, lanes.gpus[lane, g], start, t, 1.0 if gpus >= stages else gpus / stages)
    return 0, t


@inlined
def _fly(lanes, requests, answer_s, slot, server, r, end_s):
    """Enter a request into its server's list of requests in flight, oldest first."""
    lane = index(lanes.lane[slot])
    requests.finish_ps[r] = np.int64(np.rint(end_s * PS))
    answer_s[r] = end_s + lanes.fixed[slot]
    requests.next_in_queue[r] = -1
    if lanes.first[lane, server] < 0:
        lanes.first[lane, server] = r
    else:
        requests.next_in_queue[lanes.last[lane, server]] = r
    lanes.last[lane, server] = r


@inlined
def put(lanes, busy, requests, arrival_s, answer_s, slot, cls, r, now_s, slow):
    """A request reaches an instance; return when its lane is next due (ps)."""
    lane = index(lanes.lane[slot])
    if lanes.at_once[slot] and lanes.queued[lane] == 0:
        server, end_s = _execute(lanes, busy, slot, 1, requests.prompt[r], now_s, slow)
        _fly(lanes, requests, answer_s, slot, server, r, end_s)
        return due(lanes, requests, lane)
    requests.next_in_queue[r] = -1
    if lanes.head[slot, cls] < 0:
        lanes.head[slot, cls] = r
    else:
        requests.next_in_queue[lanes.tail[slot, cls]] = r
    lanes.tail[slot, cls] = r
    lanes.length[slot] += 1
    lanes.queued[lane] += 1
    # Batches start in `step`, after all arrivals of this instant.
    lanes.timer[lane] = min(lanes.timer[lane], np.int64(np.rint(now_s * PS)))
    return due(lanes, requests, lane)


@inlined
def due(lanes, requests, lane):
    """When something next happens in a lane: an answer, a free server, or a batch's deadline."""
    soonest = lanes.timer[lane]
    for server in range(lanes.servers[lane]):
        r = lanes.first[lane, server]
        if r >= 0:
            soonest = min(soonest, requests.finish_ps[r])
    return soonest


@inlined
def step(
    lanes, busy, requests, arrival_s, answer_s, lane, now_ps, units, interference, done
):  # fmt: skip
    """What is due in a lane: collect answers into `done`, start batches. Returns their number."""
    n = 0
    for server in range(lanes.servers[lane]):
        r = lanes.first[lane, server]
        while r >= 0 and requests.finish_ps[r] <= now_ps:
            done[n] = r
            n += 1
            r = requests.next_in_queue[r]
        lanes.first[lane, server] = r
    lanes.timer[lane] = NEVER
    if lanes.queued[lane] > 0:
        _start_batches(
            lanes, busy, requests, arrival_s, answer_s, lane, now_ps, units, interference
        )
    return n


@inlined
def _start_batches(
    lanes, busy, requests, arrival_s, answer_s, lane, now_ps, units, interference
):  # fmt: skip
    now_s = now_ps / PS
    while lanes.queued[lane] > 0:
        free_s = lanes.clock[lane, first_free(lanes, lane)]
        if np.int64(np.rint(free_s * PS)) > now_ps:
            lanes.timer[lane] = np.int64(np.rint(free_s * PS))
            return
        slot, deadline = _choose(lanes, arrival_s, lane, now_ps)
        if slot < 0:
            lanes.timer[lane] = deadline
            return
        slow = slow_factor(units, interference[slot])
        _batch(lanes, busy, requests, answer_s, slot, max(now_s, free_s), slow)


@inlined
def _choose(lanes, arrival_s, lane, now_ps):
    """The instance whose batch goes next: lowest class first, then the oldest request."""
    best, best_cls, best_s, deadline = -1, 99, np.inf, NEVER
    for k in range(lanes.n_members[lane]):
        slot = lanes.members[lane, k]
        if lanes.length[slot] == 0:
            continue
        cls = 0
        while lanes.head[slot, cls] < 0:
            cls += 1
        oldest_s = arrival_s[lanes.head[slot, cls]]
        if lanes.length[slot] < lanes.max_batch[slot]:
            first_s = oldest_s
            for other in range(cls + 1, lanes.head.shape[1]):
                if lanes.head[slot, other] >= 0:
                    first_s = min(first_s, arrival_s[lanes.head[slot, other]])
            ready = np.int64(np.rint((first_s + lanes.max_delay[slot]) * PS))
            if ready > now_ps:
                deadline = min(deadline, ready)
                continue
        if cls < best_cls or (cls == best_cls and oldest_s < best_s):
            best, best_cls, best_s = slot, cls, oldest_s
    return best, deadline


@inlined
def _batch(lanes, busy, requests, answer_s, slot, now_s, slow):
    """Take up to a full batch from an instance's queues, lowest class first, and execute it."""
    lane = index(lanes.lane[slot])
    size, tokens, cls, taken = 0, 0, 0, -1
    want = min(lanes.length[slot], lanes.max_batch[slot])
    while size < want:
        r = lanes.head[slot, cls]
        if r < 0:
            cls += 1
            continue
        lanes.head[slot, cls] = requests.next_in_queue[r]
        requests.next_in_queue[r] = taken  # a stack for now: sizes first, then the flight list
        taken = r
        tokens += requests.prompt[r]
        size += 1
    lanes.length[slot] -= size
    lanes.queued[lane] -= size
    server, end_s = _execute(lanes, busy, slot, size, tokens, now_s, slow)
    while taken >= 0:
        r, taken = taken, requests.next_in_queue[taken]
        _fly(lanes, requests, answer_s, slot, server, r, end_s)


@kernel
def drop(lanes, requests, slot_of, slot, out):
    """An instance is gone: take its requests out of queues and flight; return their number.

    Work that its lane has begun stays on the lane's clocks: the GPU was at it.
    """
    lane, n = lanes.lane[slot], 0
    for cls in range(lanes.head.shape[1]):
        r = lanes.head[slot, cls]
        while r >= 0:
            out[n] = r
            n += 1
            r = requests.next_in_queue[r]
        lanes.head[slot, cls] = -1
    lanes.queued[lane] -= lanes.length[slot]
    lanes.length[slot] = 0
    for server in range(lanes.servers[lane]):
        before, r = -1, lanes.first[lane, server]
        while r >= 0:
            following = requests.next_in_queue[r]
            if slot_of[r] == slot:
                out[n] = r
                n += 1
                if before < 0:
                    lanes.first[lane, server] = following
                else:
                    requests.next_in_queue[before] = following
                if following < 0:
                    lanes.last[lane, server] = before
            else:
                before = r
            r = following
    return n
