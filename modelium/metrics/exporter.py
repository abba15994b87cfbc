"""`ModeliumMetrics`: what the gateway and the executor report, for Prometheus to fetch.

    metrics = ModeliumMetrics()
    metrics.start_server(port=9090)
    metrics.record_request("gpt2", "vllm", latency_ms=150, status="success")

Methods and series of the original project keep their names. Labels never grow without bound: a
model that is removed is forgotten, and beyond `MAX_NAMES` names of one kind the rest is "other".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    exposition,
    start_http_server,
)
from prometheus_client.metrics import MetricWrapperBase

from modelium.errors import ConfigError
from modelium.metrics.families import Families
from modelium.metrics.reasons import OTHER, kind_of
from modelium.metrics.recent_rates import Lately

T = TypeVar("T", bound=MetricWrapperBase)
MAX_NAMES = 2000
"""Models, at most; more are counted as "other"."""
MAX_WORDS = 40
"""Statuses, stages, reasons and the like, at most."""
NO_GPU = "unknown"


class ModeliumMetrics:
    """Counts and measures; cheap enough for every request. Safe to call from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds; rates and idle times are measured by it."""
        self.registry = CollectorRegistry()
        self.families = Families(self.registry)
        self._lately = Lately(clock)
        self.registry.register(self._lately)
        ProcessCollector(registry=self.registry)
        self._lock = threading.Lock()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._names: dict[str, set[str]] = {}
        self._server: Any = None

    # Serving

    def start_server(self, port: int = 9090, host: str = "127.0.0.1") -> int:
        """Serve /metrics in a thread; returns the port (0 chooses one).

        Raises ConfigError if the address is taken or not this machine's.
        """
        try:
            self._server = start_http_server(port, host, self.registry)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(
                f"metrics cannot be served on {host}:{port}: {why}."
                " Choose another metrics.port or metrics.host"
            ) from None
        return int(self._server[0].server_port)

    def stop_server(self) -> None:
        """End what `start_server` began."""
        if self._server is not None:
            (server, thread), self._server = self._server, None
            server.shutdown()
            server.server_close()
            thread.join()

    def exposition(self) -> tuple[bytes, str]:
        """What /metrics says now, and its content type."""
        return exposition.generate_latest(self.registry), exposition.CONTENT_TYPE_LATEST

    # Requests

    def record_request(
        self,
        model: str,
        runtime: str,
        latency_ms: float,
        status: str = "success",
        gpu: int | str | None = None,
        *,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        wait_s: float | None = None,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        cold: str = "",
    ) -> None:
        """A request that was not refused is over.

        `status` is success, error, cancelled (its client left) or lost (its engine broke).
        `latency_ms` is from arrival to the end, `wait_s` from arrival to its place at an engine, or
        to the end of one that was cancelled while it waited;
        `cold` is the tier that its model was loaded or woken from, if it waited for that.
        """
        model, runtime = self._name("model", model), self._word("runtime", runtime)
        f, status = self.families, self._word("status", status)
        self._child(f.requests, model, runtime, status).inc()
        self._child(f.latency, model, runtime).observe(latency_ms / 1000)
        if ttft_s is not None:
            self._child(f.ttft, model).observe(ttft_s)
        if tpot_s is not None:
            self._child(f.tpot, model).observe(tpot_s)
        if wait_s is not None:
            self._child(f.queue_wait, model).observe(wait_s)
        if prompt_tokens:
            self._child(f.prompt_tokens, model).inc(prompt_tokens)
        if output_tokens:
            self._child(f.output_tokens, model).inc(output_tokens)
        if cold:
            self._child(f.cold_starts, model, self._word("tier", cold)).inc()
        self._lately.add(model, runtime, NO_GPU if gpu is None else self._name("gpu", str(gpu)))

    def record_rejection(self, model: str | None, status: int) -> None:
        """A request got no engine; `model` is None if there is no such model."""
        name = "unknown" if model is None else self._name("model", model)
        self._child(self.families.rejected, name, self._word("http", str(status))).inc()

    def get_model_qps(self, model: str, runtime: str) -> float:
        """Requests per second, mean of those that ended in the last 10 s, on all GPUs."""
        return self._lately.qps(model, runtime)

    def get_model_idle_seconds(self, model: str, runtime: str) -> float:
        """Seconds since the last request ended; `inf` if there was none."""
        return self._lately.idle_s(model, runtime)

    def update_queue_lengths(self, waiting: Mapping[str, int]) -> None:
        """How many requests wait, by model; models that are not named have none."""
        self._replace(self.families.queue_length, {(self._name("model", m),): n
                                                   for m, n in waiting.items()})  # fmt: skip

    # Models

    def record_model_load(
        self, runtime: str, status: str = "success", stages: Mapping[str, float] | None = None
    ) -> None:
        """A load ended; `stages` are its seconds by stage.

        `status` is success, failure or cancelled (it was stopped before its end, on purpose).
        """
        self._count_change(self.families.loads, runtime, status)
        self._time_stages(self.families.load_s, runtime, stages)

    def record_model_unload(self, runtime: str, status: str = "success") -> None:
        """An unload ended."""
        self._count_change(self.families.unloads, runtime, status)

    def record_model_wake(self, runtime: str, stages: Mapping[str, float]) -> None:
        """A sleeping model is back; `stages` are its seconds by stage."""
        self._time_stages(self.families.wake_s, runtime, stages)

    def record_restart(self, runtime: str) -> None:
        """An engine was lost and is started again."""
        self._child(self.families.restarts, self._word("runtime", runtime)).inc()

    def update_models_loaded_count(self, runtime: str, count: int) -> None:
        """How many models of a runtime are ready.

        From the first call on the runtime's other series are there, so that the first failure is
        seen as an increase.
        """
        runtime = self._word("runtime", runtime)
        self._child(self.families.models_loaded, runtime).set(count)
        self._child(self.families.restarts, runtime)
        for status in ("success", "failure", "cancelled"):
            self._child(self.families.loads, runtime, status)
        for status in ("success", "failure"):
            self._child(self.families.unloads, runtime, status)

    def update_model_memory(self, held: Mapping[tuple[str, str], int]) -> None:
        """Bytes by model and GPU; what is not named holds nothing."""
        self._replace(self.families.memory, {(self._name("model", m), self._name("gpu", gpu)): n
                                             for (m, gpu), n in held.items()})  # fmt: skip

    def forget_model(self, model: str) -> None:
        """A model is served no more: its series end."""
        self._lately.forget(model)
        with self._lock:
            self._names.get("model", set()).discard(model)
            self._end({key for key in list(self._children) if key[0] in self.families.of_models
                       and key[1] == model})  # fmt: skip

    # GPUs

    def update_gpu_memory(self, gpu_id: int | str, used_gb: float, total_gb: float) -> None:
        """Memory of a GPU, in GB of 10^9 bytes."""
        gpu = self._name("gpu", str(gpu_id))
        self._child(self.families.gpu_used, gpu).set(used_gb)
        self._child(self.families.gpu_total, gpu).set(total_gb)

    def update_gpu_utilization(self, gpu_id: int | str, utilization_percent: float) -> None:
        """How busy a GPU is, 0 to 100."""
        gpu = self._name("gpu", str(gpu_id))
        self._child(self.families.gpu_utilization, gpu).set(utilization_percent)

    def update_gpu_up(self, gpu_id: int | str, up: bool) -> None:
        """Whether a GPU works."""
        self._child(self.families.gpu_up, self._name("gpu", str(gpu_id))).set(up)

    # Decisions

    def record_orchestration_decision(self, action: str, reason: str) -> None:
        """The policy decided something; `reason` may be its whole sentence (see `reasons`)."""
        kind = self._word("reason", kind_of(reason))
        self._child(self.families.decisions, self._word("action", action), kind).inc()

    def record_decide(self, event: str, seconds: float) -> None:
        """The policy took so long to answer an event ("miss", "tick", ...; "plan": a search)."""
        self._child(self.families.decide_s, self._word("event", event)).observe(seconds)

    def record_journal_failure(self) -> None:
        """The journal could not be written."""
        self.families.journal_failures.inc()

    # How

    def _child(self, family: T, *labels: str) -> T:
        """The series of these labels; looking it up in the library costs more than counting."""
        key = (family, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = family.labels(*labels)
        return child

    def _name(self, kind: str, name: str) -> str:
        """A name as a label."""
        return self._bounded(kind, name, MAX_NAMES)

    def _word(self, kind: str, word: str) -> str:
        """A word of a small vocabulary as a label."""
        return self._bounded(kind, word, MAX_WORDS)

    def _bounded(self, kind: str, name: str, most: int) -> str:
        known = self._names.setdefault(kind, set())
        if name in known:
            return name
        if len(known) >= most:
            return OTHER
        known.add(name)
        return name

    def _count_change(self, family: Counter, runtime: str, status: str) -> None:
        runtime, status = self._word("runtime", runtime), self._word("change", status)
        self._child(family, runtime, status).inc()

    def _time_stages(
        self, family: Histogram, runtime: str, stages: Mapping[str, float] | None
    ) -> None:
        if not stages:
            return
        runtime = self._word("runtime", runtime)
        for stage, seconds in {**stages, "total": sum(stages.values())}.items():
            self._child(family, runtime, self._word("stage", stage)).observe(seconds)

    def _replace(self, family: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
        """Set these series and end all others of the family."""
        with self._lock:
            self._end({key for key in list(self._children)
                       if key[0] is family and key[1:] not in values})  # fmt: skip
        for labels, value in values.items():
            self._child(family, *labels).set(value)

    def _end(self, keys: set[tuple[Any, ...]]) -> None:
        """These series are exported no more."""
        for key in keys:
            family, *labels = key
            family.remove(*labels)
            del self._children[key]
