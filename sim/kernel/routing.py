"""The routers, compiled: which ready instance of its model gets a request."""

from __future__ import annotations

import numpy as np

from modelium.sim.jit.decorators import inlined
from modelium.sim.jit.hints import index
from modelium.sim.kernel import generate, infer
from modelium.sim.kernel.arrays import (
    GENERATE,
    ROUND_ROBIN,
    ROUTER,
    SESSION_AFFINITY,
    SHORTEST_QUEUE,
)


@inlined
def route(w, r, now):
    """The router: which ready instance of its model gets the request."""
    m = index(w.requests.model[r])
    n, router = w.n_ready[m], w.option[ROUTER]
    if n == 1:
        return w.ready[m, 0]
    if router == ROUND_ROBIN:
        w.turn[m] += 1
        return w.ready[m, (w.turn[m] - 1) % n]
    if router == SESSION_AFFINITY and w.session.shape[0] > 0 and w.session[r] >= 0:
        return _rendezvous(w, m, n, w.session[r])
    best, best_key = w.ready[m, 0], np.inf
    for k in range(n):
        slot = index(w.ready[m, k])
        key = _queue_key(w, slot, now) if router == SHORTEST_QUEUE else float(w.outstanding[slot])
        if key < best_key:
            best, best_key = slot, key
    return best


@inlined
def _queue_key(w, slot, now):
    """Work ahead of a new request: tokens to compute, or when the lane's last stage is free."""
    if w.kind[slot] == GENERATE:
        return float(generate.backlog_tokens(w.engines, w.requests, slot, now))
    lane = index(w.lanes.lane[slot])
    if w.lanes.servers[lane] > 1:
        return w.lanes.clock[lane, infer.first_free(w.lanes, lane)]
    return w.lanes.clock[lane, w.lanes.stages[lane] - 1]


@inlined
def _rendezvous(w, m, n, session):
    """Highest random weight (Thaler and Ravishankar 1998): sessions move only when they must."""
    best, best_key = w.ready[m, 0], np.uint64(0)
    for k in range(n):
        slot = w.ready[m, k]
        x = np.uint64(session) * np.uint64(0x9E3779B97F4A7C15)
        x ^= np.uint64(w.number[slot]) * np.uint64(0xC2B2AE3D27D4EB4F)
        x ^= x >> np.uint64(29)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(32)
        if k == 0 or x > best_key:
            best, best_key = slot, x
    return best
