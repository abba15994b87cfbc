"""What is over goes into the journal: requests, and who held and used which GPU until when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelium.live.requests.interface import RefusedError, Request
from modelium.live.requests.slot import LiveSeat

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster


class RequestLog:
    """Watches a cluster's requests."""

    def __init__(self, cluster: LiveCluster) -> None:
        self._cluster = cluster
        cluster.watchers.over.append(self.over)
        cluster.watchers.refused.append(self.refused)
        cluster.watchers.cancelled.append(self.cancelled)

    def over(self, seat: LiveSeat, outcome: str, why: str) -> None:
        """A request is over; one that lost its engine before the answer began is not yet."""
        request, now_s = seat.request, self._cluster.now_s()
        if outcome == "lost" and seat.first_s is None:
            return
        first_s = seat.first_s if outcome != "completed" or seat.first_s else now_s
        # What came in one piece ended as it began: it shows no time between its tokens.
        end_s = first_s if first_s is not None and seat.moved_s == first_s else now_s
        met = outcome == "completed" and self._met(request, first_s or end_s, end_s)
        self._cluster.journal.request(
            (
                request.id, request.arrival_s, request.model, request.organization,
                request.slo_class, request.prompt_tokens, request.output_tokens,
                "failed" if outcome == "lost" else outcome, why, seat.copy.id, first_s, end_s,
                seat.cold, request.retries, int(met), seat.gpu_seconds,
            )
        )  # fmt: skip

    def refused(self, request: Request, error: RefusedError) -> None:
        """A request got no engine."""
        self._never_seated(request, "refused", str(error), None)

    def cancelled(self, request: Request) -> None:
        """A request's client went away while it waited for an engine."""
        why = "its client left while it waited"
        self._never_seated(request, "cancelled", why, self._cluster.now_s())

    def _never_seated(
        self, request: Request, outcome: str, why: str, finish_s: float | None
    ) -> None:
        self._cluster.journal.request(
            (
                request.id, request.arrival_s, request.model, request.organization,
                request.slo_class, request.prompt_tokens, 0, outcome, why, None, None, finish_s,
                "", request.retries, 0, 0.0,
            )
        )  # fmt: skip

    def _met(self, request: Request, first_s: float, finish_s: float) -> bool:
        model = self._cluster.state.models.get(request.model)
        if model is None:
            return False
        gaps = max(request.output_tokens - 1, 1)
        tpot_s = (finish_s - first_s) / gaps if request.output_tokens > 1 else -math.inf
        slo = model.slo
        return (
            first_s - request.arrival_s <= slo.ttft_s
            and finish_s - request.arrival_s <= slo.e2e_s
            and tpot_s <= slo.tpot_s
        )


def note_timeline(cluster: LiveCluster) -> None:
    """Hand the timeline to the journal: what has ended, and the rest as far as it has come."""
    residency, busy = cluster.lifecycle.timeline, cluster.dispatcher.busy
    cluster.journal.timeline(
        [*residency.take(), *busy.take()], [*residency.under_way(), *busy.under_way()]
    )
