"""Loads that were begun for requests which have all gone: they are cancelled, unless nearly done.

A load is cancelled when nobody waits for its model any more, no operator wishes for it, it is not
pinned and not one of its `min_replicas`. These go on:

- a load that was begun while nobody waited, or a second copy: the policy wanted it by itself;
- one that is nearly done: at most a tenth of its expected time, or `NEARLY_S` if that is more, is
  left. To stop it and to see its memory free takes as long. One that is later than that by as much
  again is not nearly done: nobody knows how long it will take;
- one that was begun again within `AGAIN_S` of such a cancellation. Clients that give up sooner than
  the model loads and then try again would otherwise never be served;
- a wake: it takes about a second, and stopping it would cost the copy that sleeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelium.control.rules import must_stay
from modelium.control.state import Copy
from modelium.core import Phase
from modelium.live.engines.progress import PendingLoad, PendingLoads

if TYPE_CHECKING:
    from modelium.live.context import LiveContext

NEARLY_SHARE = 0.1
NEARLY_S = 2.0
AGAIN_S = 60.0
HAIR_S = 0.01
WHY = "nobody waits for it any more"


class UnwantedLoads:
    """Which loads may be cancelled when the last request for their model goes."""

    def __init__(self, cluster: LiveContext, pending_loads: PendingLoads) -> None:
        self._cluster = cluster
        self._pending_loads = pending_loads
        self._for_requests: set[str] = set()
        """Copies that load because requests waited."""
        self._cancelled_s: dict[str, float] = {}
        """When a load of each model was cancelled last, if that counts still."""

    def begins(self, copy: Copy) -> None:
        """A load begins because requests wait for its model and no copy is ready or coming."""
        last_s = self._cancelled_s.pop(copy.model, float("-inf"))
        if self._cluster.now_s() - last_s > AGAIN_S:
            self._for_requests.add(copy.id)

    def over(self, copy: Copy) -> None:
        """The load has ended, however."""
        self._for_requests.discard(copy.id)

    def look(self, model: str) -> None:
        """A request for `model` waits no more: cancel what loads for nobody."""
        cluster = self._cluster
        if model not in cluster.state.models or self._wanted(model):
            return
        for one in list(cluster.state.instances_of(model)):
            if one.phase is Phase.LOADING and one.id in self._for_requests:
                self._consider(cluster.state.copy(one.id))

    def _wanted(self, model: str) -> bool:
        dispatcher = self._cluster.dispatcher
        closed = dispatcher.closed or model in dispatcher.going  # whoever does that ends the loads
        return bool(closed or model in dispatcher.wanted or dispatcher.queue.waiting(model))

    def _consider(self, copy: Copy) -> None:
        cluster = self._cluster
        if must_stay(cluster.state, copy):
            return
        coming = self._pending_loads.of(copy.id)
        if coming is not None and (rest_s := _nearly_done_s(coming, cluster.now_s())):
            cluster.loop.call_later(rest_s + HAIR_S, self.look, copy.model)
            return
        now_s = cluster.now_s()
        lately = {name: at for name, at in self._cancelled_s.items() if now_s - at <= AGAIN_S}
        self._cancelled_s = {**lately, copy.model: now_s}
        cluster.cancel(copy, WHY)


def _nearly_done_s(coming: PendingLoad, now_s: float) -> float:
    """Seconds until it is too late to call a load nearly done; 0 if it is not."""
    margin_s = max(NEARLY_SHARE * coming.expected_s, NEARLY_S)
    left_s = coming.begun_s + coming.expected_s - now_s
    return left_s + margin_s if -margin_s < left_s <= margin_s else 0.0
