"""The compiled world: arrivals, routing, waiting rooms and engines, from one moment to the next.

`advance` runs everything that is frequent up to a given time and stops early at the first thing
that the control side must hear: a miss, or an instance falling idle while somebody waits (or while
it is being drained). Order at one instant: control side, then arrivals, then engines.
"""

from __future__ import annotations

import numpy as np

from modelium.sim.jit.decorators import entry, inlined
from modelium.sim.jit.hints import index
from modelium.sim.kernel import generate, infer
from modelium.sim.kernel.arrays import (
    ABSENT,
    COMPLETED,
    DEADLINE,
    GENERATE,
    HUNGRY,
    MODEL,
    NEXT,
    NOW,
    OPEN,
    QUEUE_LIMIT,
    REJECTED,
    SLOT,
)  # fmt: skip
from modelium.sim.kernel.heap import NEVER, set_due
from modelium.sim.kernel.infer import PS, add_busy, slow_factor
from modelium.sim.kernel.routing import route
from modelium.sim.kernel.world_pointer import world_at

HORIZON, MISS, IDLE = 0, 1, 2
"""Why `advance` returned."""


@entry
def advance(handle, until):
    """Run up to, not including, `until` (ps) and say why it stopped; `w.at[NOW]` is the time."""
    w = world_at(handle)
    arrivals = w.arrival_ps
    n = arrivals.shape[0]
    while True:
        r = index(w.at[NEXT])
        arrival = arrivals[r] if r < n else NEVER
        unit = index(w.heap.order[0])
        due = w.heap.due[unit]
        if arrival <= due:
            if arrival >= until:
                break
            w.at[NOW] = arrival
            w.at[NEXT] = r + 1
            if _arrive(w, r, arrival):
                return MISS
        else:
            if due >= until:
                break
            w.at[NOW] = due
            if _work(w, unit, due):
                return IDLE
    w.at[NOW] = max(w.at[NOW], until)
    return HORIZON


@inlined
def _arrive(w, r, now):
    """Count a request and send it on; True if the control side must hear of a miss."""
    m = index(w.requests.model[r])
    w.at[OPEN] += 1
    w.arrivals[m] += 1
    w.prompt_sum[m] += w.requests.prompt[r]
    w.output_sum[m] += w.requests.output[r]
    gap = (now - w.last_arrival_ps[m]) / PS
    w.rate[m] = w.rate[m] * np.exp(-gap / w.rate_window_s[0]) + 1.0 / w.rate_window_s[0]
    w.last_arrival_ps[m] = now
    if w.n_ready[m] > 0:
        dispatch(w, r, now)
        return False
    if w.option[ABSENT] or w.n_waiting[m] >= w.option[QUEUE_LIMIT]:
        _settle(w, r, REJECTED)
        return False
    join_waiting(w, r)
    return _grows_hungry(w, m)


@inlined
def join_waiting(w, r):
    """Put a request at the end of its model's waiting room."""
    m = w.requests.model[r]
    w.requests.next_in_queue[r] = -1
    if w.n_waiting[m] == 0:
        w.first_waiting[m] = r
    else:
        w.requests.next_in_queue[w.last_waiting[m]] = r
    w.last_waiting[m] = r
    w.n_waiting[m] += 1


@inlined
def _grows_hungry(w, m):
    """A model is hungry if requests wait and no instance is on its way; True if it just became."""
    if w.hungry[m] or w.coming[m] > 0:
        return False
    w.hungry[m] = True
    w.at[HUNGRY] += 1
    w.at[MODEL] = m
    return True


@inlined
def _settle(w, r, outcome):
    w.outcome[r] = outcome
    w.at[OPEN] -= 1


@inlined
def dispatch(w, r, now):
    """Send a request to a ready instance of its model, or turn it away."""
    slot = index(route(w, r, now))
    m, cls = w.requests.model[r], w.slo_class[r]
    if w.outstanding[slot] >= w.capacity[slot] + w.option[QUEUE_LIMIT]:
        _settle(w, r, REJECTED)
        return
    now_s = w.arrival_s[r] if w.arrival_ps[r] == now else now / PS
    slow = _slow_factor(w, slot)
    if w.option[DEADLINE] and not _in_time(w, slot, r, now_s, slow, w.slo[m, cls]):
        _settle(w, r, REJECTED)
        return
    if w.kind[slot] == GENERATE:
        if not generate.fits(w.engines, w.requests, slot, r):
            _settle(w, r, REJECTED)
            return
        _take(w, slot, r, now)
        generate.put(w.engines, w.requests, slot, r, now)
        set_due(w.heap, slot, w.engines.engines[slot].due_ps)
    else:
        _take(w, slot, r, now)
        due = infer.put(
            w.lanes, w.busy, w.requests, w.arrival_s, w.answer_s, slot, cls, r, now_s, slow
        )
        set_due(w.heap, w.kind.shape[0] + w.lanes.lane[slot], due)


@inlined
def _in_time(w, slot, r, now_s, slow, slo):
    """Whether the request can still meet its SLO here, seen optimistically."""
    arrival = w.arrival_s[r]
    if w.kind[slot] == GENERATE:
        first, last = generate.predict(w.engines, w.requests, slot, r, now_s)
        return first - arrival <= slo[0] and last - arrival <= slo[2]
    answer = infer.predict(w.lanes, slot, w.requests.prompt[r], now_s, slow)
    return answer - arrival <= min(slo[0], slo[2])


@inlined
def _take(w, slot, r, now):
    """Enter a request into an instance's books."""
    w.instance[r] = w.number[slot]
    w.slot_of[r] = slot
    w.served[slot] += 1
    w.last_used_ps[slot] = now
    w.outstanding[slot] += 1
    if w.kind[slot] == GENERATE:
        if w.outstanding[slot] == 1:
            _unit_busy(w, slot, now, 1)
    else:
        lane = index(w.lanes.lane[slot])
        w.lane_load[lane] += 1
        if w.lane_load[lane] == 1:
            _unit_busy(w, slot, now, 1)


@inlined
def leave(w, slot, now):
    """Strike a request out of an instance's books; True if the instance is idle now."""
    w.outstanding[slot] -= 1
    if w.kind[slot] == GENERATE:
        if w.outstanding[slot] == 0:
            _unit_busy(w, slot, now, -1)
    else:
        lane = index(w.lanes.lane[slot])
        w.lane_load[lane] -= 1
        if w.lane_load[lane] == 0:
            _unit_busy(w, slot, now, -1)
    if w.outstanding[slot] > 0:
        return False
    w.idle_since_ps[slot] = now
    return True


@inlined
def _unit_busy(w, slot, now, change):
    """An engine starts or stops working: its neighbours on the GPUs slow down or speed up."""
    for k in range(w.n_slot_gpus[slot]):
        g = index(w.slot_gpus[slot, k])
        w.busy_units[g] += change
        if w.kind[slot] == GENERATE:
            before = w.busy_engines[g]
            w.busy_engines[g] += change
            if before == 0:
                w.busy_since_ps[g] = now
            elif w.busy_engines[g] == 0:
                add_busy(w.busy, g, w.busy_since_ps[g] / PS, now / PS, 1.0)
        if w.busy_engines[g] > 0:  # else nobody on it has a pace
            _repace(w, g, now)


@inlined
def _repace(w, g, now):
    for k in range(w.n_on[g]):
        slot = w.on[g, k]
        if w.kind[slot] == GENERATE and w.outstanding[slot] > 0:
            generate.set_slow(w.engines, w.requests, slot, now, _slow_factor(w, slot))
            set_due(w.heap, slot, w.engines.engines[slot].due_ps)


@inlined
def _slow_factor(w, slot):
    return slow_factor(_sharers(w, slot), w.interference[slot])


@inlined
def _sharers(w, slot):
    """How many busy engines share the busiest GPU of an instance, itself included."""
    units = 1
    for k in range(w.n_slot_gpus[slot]):
        units = max(units, w.busy_units[index(w.slot_gpus[slot, k])])
    return units


@inlined
def _work(w, unit, now):
    """Let the engine that is due work; True if the control side must hear that one fell idle."""
    n_slots = w.kind.shape[0]
    if unit < n_slots:
        n = generate.step(w.engines, w.requests, unit, w.done)
        set_due(w.heap, unit, w.engines.engines[unit].due_ps)
    else:
        lane = index(unit - n_slots)
        units = 1  # if no batch is to start, nobody asks
        if w.lanes.queued[lane] > 0:
            units = _sharers(w, index(w.lanes.members[lane, 0]))
        n = infer.step(
            w.lanes, w.busy, w.requests, w.arrival_s, w.answer_s, lane, now, units,
            w.interference, w.done,
        )  # fmt: skip
        set_due(w.heap, unit, infer.due(w.lanes, w.requests, lane))
    hear = False
    for k in range(n):
        r = index(w.done[k])
        slot = index(w.slot_of[r])
        _settle(w, r, COMPLETED)
        if leave(w, slot, now) and (w.at[HUNGRY] > 0 or w.hear[slot]):
            w.at[SLOT] = slot
            hear = True
    return hear


@entry
def begin(handle, slot, row, kv_tokens):
    """Begin a new life of an engine (see `generate.start`)."""
    generate.start(world_at(handle).engines, slot, row, kv_tokens)


@entry
def send(handle, r, now):
    """`dispatch` as a call: inlined everywhere, it would be most of what there is to compile."""
    dispatch(world_at(handle), r, now)


@entry
def release(handle, m, now, cold):
    """An instance of model `m` is ready: send it all that waits, in order of arrival."""
    w = world_at(handle)
    r = w.first_waiting[m]
    count = w.n_waiting[m]
    w.n_waiting[m] = 0
    if w.hungry[m]:
        w.hungry[m] = False
        w.at[HUNGRY] -= 1
    for _ in range(count):
        following = w.requests.next_in_queue[r]
        w.cold[r] = cold
        send(handle, r, now)
        r = following
    return count


@entry
def expire(handle, m, before_ps):
    """Reject requests of model `m` that wait since `before_ps` or longer; return how many."""
    w = world_at(handle)
    n = 0
    while w.n_waiting[m] > 0 and w.arrival_ps[w.first_waiting[m]] <= before_ps:
        r = w.first_waiting[m]
        w.first_waiting[m] = w.requests.next_in_queue[r]
        w.n_waiting[m] -= 1
        _settle(w, r, REJECTED)
        n += 1
    if w.n_waiting[m] == 0 and w.hungry[m]:
        w.hungry[m] = False
        w.at[HUNGRY] -= 1
    return n


@inlined
def _sort(values, n):
    """Sort the first `n`, nearly sorted, values by insertion."""
    for k in range(1, n):
        value, at = values[k], k
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@entry
def crash(handle, slot, now, retries, failed):
    """An instance is lost: send its requests elsewhere, or fail those tried too often."""
    w = world_at(handle)
    if w.kind[slot] == GENERATE:
        n = generate.drop(w.engines, w.requests, slot, w.done)
        set_due(w.heap, slot, NEVER)
    else:
        n = infer.drop(w.lanes, w.requests, w.slot_of, slot, w.done)
        lane = w.lanes.lane[slot]
        set_due(w.heap, w.kind.shape[0] + lane, infer.due(w.lanes, w.requests, lane))
    _sort(w.done, n)
    for k in range(n):
        r = w.done[k]
        leave(w, slot, now)
        w.requests.first_ps[r] = -1
        w.requests.finish_ps[r] = -1
        w.answer_s[r] = np.nan
        if w.retries[r] >= retries:
            _settle(w, r, failed)
            continue
        w.retries[r] += 1
        m = w.requests.model[r]
        if w.n_ready[m] > 0:
            send(handle, r, now)
        else:
            join_waiting(w, r)
            _grows_hungry(w, m)
    return n
