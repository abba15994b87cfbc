"""From what happens in a live cluster to its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelium.core import Phase, was_cancelled
from modelium.live.requests.interface import RefusedError, Request
from modelium.live.requests.slot import LiveSeat
from modelium.metrics import ModeliumMetrics

if TYPE_CHECKING:
    from modelium.live.cluster import LiveCluster

GB = 1e9
STATUS = {"completed": "success", "failed": "error"}
"""Outcomes under the original project's names; the others keep theirs."""


class Telemetry:
    """Watches a cluster and reports."""

    def __init__(self, cluster: LiveCluster, metrics: ModeliumMetrics) -> None:
        self._cluster, self._metrics = cluster, metrics
        self._journal_failures = 0
        self._served: set[str] = set()
        cluster.watchers.news.append(self._hear)
        cluster.watchers.over.append(self._over)
        cluster.watchers.refused.append(self._refused)
        cluster.watchers.cancelled.append(self._cancelled)

    def _over(self, seat: LiveSeat, outcome: str, why: str) -> None:
        request, now_s = seat.request, self._cluster.now_s()
        if request.model not in self._cluster.state.models:
            return  # it was removed, and its series have ended
        first_s = seat.first_s if seat.first_s is not None else now_s
        whole = outcome == "completed"
        # An answer that came in one piece shows no time between its tokens.
        gaps = request.output_tokens - 1 if seat.moved_s > first_s else 0
        self._metrics.record_request(
            request.model,
            seat.engine.runtime,
            1000 * (now_s - request.arrival_s),
            STATUS.get(outcome, outcome),
            " ".join(seat.copy.gpus),
            ttft_s=first_s - request.arrival_s if whole else None,
            tpot_s=(seat.moved_s - first_s) / gaps if whole and gaps > 0 else None,
            wait_s=seat.begun_s - request.arrival_s,
            prompt_tokens=request.prompt_tokens if whole else 0,
            output_tokens=request.output_tokens if whole else 0,
            cold=seat.cold,
        )

    def _refused(self, request: Request, error: RefusedError) -> None:
        known = request.model in self._cluster.state.models
        self._metrics.record_rejection(request.model if known else None, error.status)

    def _cancelled(self, request: Request) -> None:
        waited_s, model = self._cluster.now_s() - request.arrival_s, request.model
        if model in self._cluster.state.models:  # as above
            self._metrics.record_request(
                model, self._runtime(model), 1000 * waited_s, "cancelled", wait_s=waited_s
            )

    def _hear(self, what: str, about: Mapping[str, Any]) -> None:
        match what:
            case "decision":
                self._metrics.record_orchestration_decision(about["kind"], about["reason"])
            case "done":
                self._ended(about)
            case "decide":
                self._metrics.record_decide(about["heard"], about["seconds"])
            case "plan":
                self._metrics.record_decide("plan", about["seconds"])
            case "lost":
                self._metrics.record_restart(self._runtime(about["model"]))
            case "gpus":
                self._look()

    def _ended(self, about: Mapping[str, Any]) -> None:
        runtime, kind = self._runtime(about["model"]), about["kind"]
        error = about["error"]
        status = "cancelled" if was_cancelled(error) else "failure" if error else "success"
        if kind in ("load", "move"):
            self._metrics.record_model_load(runtime, status, about["stages"])
        elif kind == "unload":
            self._metrics.record_model_unload(runtime, status)
        elif kind == "wake" and not error:
            self._metrics.record_model_wake(runtime, about["stages"])

    def _look(self) -> None:
        """What is true now, about once a second."""
        cluster, metrics = self._cluster, self._metrics
        for name, device in cluster.devices.items():
            reading = cluster.memory.readings.get(device)
            if reading is None:
                continue
            metrics.update_gpu_up(name, not reading.lost)
            metrics.update_gpu_memory(name, reading.used_bytes / GB, reading.total_bytes / GB)
            if reading.utilisation is not None:
                metrics.update_gpu_utilization(name, 100 * reading.utilisation)
        held: Counter[tuple[str, str]] = Counter()
        loaded: dict[str, set[str]] = {runtime: set() for runtime in cluster.managers}
        for copy in cluster.state.instances.values():
            for gpu in copy.gpus:
                held[copy.model, gpu] += copy.bytes_per_gpu
            if copy.phase is Phase.READY:
                loaded.setdefault(self._runtime(copy.model), set()).add(copy.model)
        metrics.update_model_memory(held)
        for runtime, models in loaded.items():
            metrics.update_models_loaded_count(runtime, len(models))
        queue = cluster.dispatcher.queue
        metrics.update_queue_lengths({model: queue.waiting(model) for model in queue.models()})
        served = set(cluster.served)
        for model in self._served - served:
            metrics.forget_model(model)
        self._served = served
        while self._journal_failures < cluster.journal.failures:
            self._journal_failures += 1
            metrics.record_journal_failure()

    def _runtime(self, model: str) -> str:
        served = self._cluster.served.get(model)
        return served.runtime if served else "unknown"
