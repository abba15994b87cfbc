"""Every series that Modelium exports: names, labels, buckets. GB are 10^9 bytes."""

from __future__ import annotations

from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

T = TypeVar("T", bound=MetricWrapperBase)

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Decisions, and the time between tokens."""
ANSWER_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0)
"""Answers, with the wait for a load in them."""
LOAD_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
"""Loads, wakes and their stages."""


class Families:
    """The metric families, registered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.of_models: set[MetricWrapperBase] = set()
        """Those whose first label is the model."""

        def add(kind: type[T], name: str, labels: str, says: str, **options: Any) -> T:
            names = labels.split()
            family = kind(f"modelium_{name}", says, names, registry=registry, **options)
            if names[:1] == ["model"]:
                self.of_models.add(family)
            return family

        def count(name: str, labels: str, says: str) -> Counter:
            return add(Counter, f"{name}_total", labels, says)

        def gauge(name: str, labels: str, says: str) -> Gauge:
            return add(Gauge, name, labels, says)

        def time(name: str, labels: str, says: str, buckets: tuple[float, ...]) -> Histogram:
            return add(Histogram, f"{name}_seconds", labels, says, buckets=buckets)

        says = "Requests that are over, by how they ended; refused ones are counted as rejected"
        self.requests = count("requests", "model runtime status", says)
        says = "Requests that got no engine, by HTTP status"
        self.rejected = count("requests_rejected", "model status", says)
        says = "Arrival to the end of the answer"
        self.latency = time("request_latency", "model runtime", says, ANSWER_S)
        says = "Arrival to first token, waiting and loading included"
        self.ttft = time("time_to_first_token", "model", says, ANSWER_S)
        says = "Mean time between the tokens after the first"
        self.tpot = time("time_per_output_token", "model", says, SHORT_S)
        self.prompt_tokens = count("prompt_tokens", "model", "Prompt tokens read")
        self.output_tokens = count("output_tokens", "model", "Tokens made")
        says = "Arrival to a place at an engine, or until the client left"
        self.queue_wait = time("queue_wait", "model", says, ANSWER_S)
        self.queue_length = gauge("queue_length", "model", "Requests that wait for an engine")
        says = "Requests that waited for a load or wake, by where the weights came from"
        self.cold_starts = count("cold_starts", "model tier", says)

        self.models_loaded = gauge("models_loaded", "runtime", "Models that are ready to answer")
        self.loads = count("model_loads", "runtime status", "Loads that ended")
        self.unloads = count("model_unloads", "runtime status", "Unloads that ended")
        says = "Loads by stage; the stage total is all of it"
        self.load_s = time("load", "runtime stage", says, LOAD_S)
        says = "Wakes by stage; the stage total is all of it"
        self.wake_s = time("wake", "runtime stage", says, LOAD_S)
        says = "Engines that were lost and are started again"
        self.restarts = count("engine_restarts", "runtime", says)
        says = "What the copies of a model hold of a GPU"
        self.memory = gauge("model_memory_bytes", "model gpu", says)

        says = "Actions of the policy, by kind of reason"
        self.decisions = count("orchestration_decisions", "action reason", says)
        says = "Time that the policy took to answer an event"
        self.decide_s = time("decide", "event", says, SHORT_S)
        self.journal_failures = count("journal_failures", "", "Writes that the disk refused")

        self.gpu_used = gauge("gpu_memory_used_gb", "gpu", "Memory in use, by anybody")
        self.gpu_total = gauge("gpu_memory_total_gb", "gpu", "Memory in all")
        says = "Share of the time in which the GPU computed"
        self.gpu_utilization = gauge("gpu_utilization_percent", "gpu", says)
        self.gpu_up = gauge("gpu_up", "gpu", "1 if the GPU works, 0 if it is lost")
