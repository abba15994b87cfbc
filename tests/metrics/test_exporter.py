"""ModeliumMetrics: the original project's calls and series, and ours."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelium.errors import ConfigError
from modelium.metrics import ModeliumMetrics, exporter

ORIGINAL = {
    "modelium_requests_total": {"model", "runtime", "status"},
    "modelium_request_latency_seconds_count": {"model", "runtime"},
    "modelium_model_qps": {"model", "runtime", "gpu"},
    "modelium_model_qpm": {"model", "runtime", "gpu"},
    "modelium_model_idle_seconds": {"model", "runtime"},
    "modelium_models_loaded": {"runtime"},
    "modelium_gpu_memory_used_gb": {"gpu"},
    "modelium_gpu_memory_total_gb": {"gpu"},
    "modelium_gpu_utilization_percent": {"gpu"},
    "modelium_model_loads_total": {"runtime", "status"},
    "modelium_model_unloads_total": {"runtime", "status"},
    "modelium_orchestration_decisions_total": {"action", "reason"},
}
"""Names and labels of the original project."""
OURS = {
    "modelium_time_to_first_token_seconds_count": {"model"},
    "modelium_time_per_output_token_seconds_count": {"model"},
    "modelium_prompt_tokens_total": {"model"},
    "modelium_output_tokens_total": {"model"},
    "modelium_queue_wait_seconds_count": {"model"},
    "modelium_queue_length": {"model"},
    "modelium_cold_starts_total": {"model", "tier"},
    "modelium_requests_rejected_total": {"model", "status"},
    "modelium_load_seconds_count": {"runtime", "stage"},
    "modelium_wake_seconds_count": {"runtime", "stage"},
    "modelium_engine_restarts_total": {"runtime"},
    "modelium_model_memory_bytes": {"model", "gpu"},
    "modelium_decide_seconds_count": {"event"},
    "modelium_journal_failures_total": set(),
    "modelium_gpu_up": {"gpu"},
}


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def everything(clock: Any = None) -> ModeliumMetrics:
    """Each method called once."""
    metrics = ModeliumMetrics(clock or Clock())
    metrics.record_request(
        "gpt2", "vllm", latency_ms=150, status="success", gpu=0, ttft_s=0.05, tpot_s=0.01,
        wait_s=0.02, prompt_tokens=12, output_tokens=34, cold="disk",
    )  # fmt: skip
    metrics.record_rejection("gpt2", 429)
    metrics.update_queue_lengths({"gpt2": 3})
    metrics.record_model_load("vllm", "success", {"process": 2.0, "weights": 5.0})
    metrics.record_model_unload("vllm")
    metrics.record_model_wake("vllm", {"wake": 1.5})
    metrics.record_restart("vllm")
    metrics.update_models_loaded_count("vllm", 1)
    metrics.update_model_memory({("gpt2", "g0"): 10_000})
    metrics.update_gpu_memory(gpu_id=0, used_gb=15.2, total_gb=40.0)
    metrics.update_gpu_utilization(0, 93.0)
    metrics.update_gpu_up(0, True)
    metrics.record_orchestration_decision("load", "3 waiting, oldest 2.0 s")
    metrics.record_decide("miss", 0.003)
    metrics.record_journal_failure()
    return metrics


def samples(metrics: ModeliumMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scraper reads: value by name and labels."""
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: ModeliumMetrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


@pytest.mark.parametrize(("name", "labels"), {**ORIGINAL, **OURS}.items())
def test_series_have_their_names_and_labels(name: str, labels: set[str]) -> None:
    found = [{k for k, _ in sample} for n, sample in samples(everything()) if n == name]
    assert found
    assert all(each == labels for each in found)


def test_no_series_is_without_a_test_of_its_name() -> None:
    kinds = ("_bucket", "_sum", "_created")
    names = {name for name, _ in samples(everything()) if name.startswith("modelium_")}
    assert {name for name in names if not name.endswith(kinds)} == {*ORIGINAL, *OURS}


def test_values_are_those_that_were_reported() -> None:
    metrics = everything()
    for name, labels, wanted in [
        ("requests_total", {"model": "gpt2", "runtime": "vllm", "status": "success"}, 1),
        ("request_latency_seconds_sum", {"model": "gpt2", "runtime": "vllm"}, 0.15),
        ("time_to_first_token_seconds_sum", {"model": "gpt2"}, 0.05),
        ("time_per_output_token_seconds_sum", {"model": "gpt2"}, 0.01),
        ("queue_wait_seconds_sum", {"model": "gpt2"}, 0.02),
        ("prompt_tokens_total", {"model": "gpt2"}, 12),
        ("output_tokens_total", {"model": "gpt2"}, 34),
        ("cold_starts_total", {"model": "gpt2", "tier": "disk"}, 1),
        ("requests_rejected_total", {"model": "gpt2", "status": "429"}, 1),
        ("queue_length", {"model": "gpt2"}, 3),
        ("model_loads_total", {"runtime": "vllm", "status": "success"}, 1),
        ("load_seconds_sum", {"runtime": "vllm", "stage": "weights"}, 5),
        ("load_seconds_sum", {"runtime": "vllm", "stage": "total"}, 7),
        ("wake_seconds_sum", {"runtime": "vllm", "stage": "total"}, 1.5),
        ("gpu_memory_used_gb", {"gpu": "0"}, 15.2),
        ("gpu_memory_total_gb", {"gpu": "0"}, 40),
        ("gpu_utilization_percent", {"gpu": "0"}, 93),
        ("gpu_up", {"gpu": "0"}, 1),
        ("orchestration_decisions_total", {"action": "load", "reason": "waiting"}, 1),
        ("journal_failures_total", {}, 1),
    ]:
        assert value(metrics, f"modelium_{name}", **labels) == pytest.approx(wanted), name


def test_the_shortest_call_of_the_original_project() -> None:
    clock = Clock()
    metrics = ModeliumMetrics(clock)
    metrics.record_request("gpt2", "vllm", 150)
    assert value(
        metrics, "modelium_model_qps", model="gpt2", runtime="vllm", gpu="unknown"
    ) == metrics.get_model_qps("gpt2", "vllm")
    metrics.record_orchestration_decision("load", "high_qps")
    name = "modelium_orchestration_decisions_total"
    assert value(metrics, name, action="load", reason="high_qps") == 1


def test_idle_time_and_rate_follow_the_clock() -> None:
    clock = Clock()
    metrics = ModeliumMetrics(clock)
    assert metrics.get_model_idle_seconds("gpt2", "vllm") == float("inf")
    assert metrics.get_model_qps("gpt2", "vllm") == 0.0
    for _ in range(50):
        clock.now_s += 0.2
        metrics.record_request("gpt2", "vllm", 10, gpu=0)
        metrics.record_request("gpt2", "vllm", 10, gpu=1)
    clock.now_s += 0.5
    assert metrics.get_model_qps("gpt2", "vllm") == pytest.approx(10.0, rel=0.06)
    assert metrics.get_model_idle_seconds("gpt2", "vllm") == pytest.approx(0.5)
    labels = {"model": "gpt2", "runtime": "vllm"}
    assert value(metrics, "modelium_model_idle_seconds", **labels) == pytest.approx(0.5)
    clock.now_s += 60
    assert metrics.get_model_qps("gpt2", "vllm") == 0.0
    assert value(metrics, "modelium_model_qpm", **labels, gpu="0") == 0.0


def test_what_is_gone_is_not_exported() -> None:
    metrics = everything()
    metrics.update_queue_lengths({"other": 1})
    metrics.update_model_memory({})
    found = samples(metrics)
    assert [v for (name, _), v in found.items() if name == "modelium_queue_length"] == [1]
    assert not [name for name, _ in found if name == "modelium_model_memory_bytes"]


def test_a_model_that_was_removed_leaves_no_series() -> None:
    metrics = everything()
    before = len(samples(metrics))
    metrics.record_request("other", "vllm", 1)
    metrics.forget_model("gpt2")
    assert not [labels for _, labels in samples(metrics) if ("model", "gpt2") in labels]
    assert (
        value(metrics, "modelium_requests_total", model="other", runtime="vllm", status="success")
        == 1
    )
    metrics.forget_model("other")
    assert len(samples(metrics)) < before
    metrics.record_request("gpt2", "vllm", 1)
    assert (
        value(metrics, "modelium_requests_total", model="gpt2", runtime="vllm", status="success")
        == 1
    )


def test_labels_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MAX_NAMES", 5)
    monkeypatch.setattr(exporter, "MAX_WORDS", 4)
    metrics = ModeliumMetrics()
    for k in range(100):
        metrics.record_request(f"model-{k}", "vllm", 1, f"status_{k}", gpu=f"g{k}")
        metrics.record_orchestration_decision("load", f"word_{k}")
        metrics.record_rejection(None, 404)
    for name, label in [("requests_total", "model"), ("model_qps", "model"), ("model_qps", "gpu")]:
        found = [dict(labels)[label] for n, labels in samples(metrics) if n == f"modelium_{name}"]
        assert len(set(found)) == 6
        assert "other" in found
    reasons = [v for (n, _), v in samples(metrics).items()
               if n == "modelium_orchestration_decisions_total"]  # fmt: skip
    assert sorted(reasons) == [1, 1, 1, 1, 96]
    labels = {"model": "unknown", "status": "404"}
    assert value(metrics, "modelium_requests_rejected_total", **labels) == 100


def test_threads_lose_nothing() -> None:
    metrics = ModeliumMetrics()

    def work(k: int) -> None:
        for i in range(500):
            metrics.record_request(f"model-{i % 7}", "vllm", 1, gpu=k)
            metrics.update_queue_lengths({f"model-{i % 5}": i})
            if i % 50 == 0:
                metrics.exposition()
                metrics.forget_model("never")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = [v for (n, _), v in samples(metrics).items() if n == "modelium_requests_total"]
    assert sum(counted) == 2000


def test_it_serves_itself_on_the_loopback_alone() -> None:
    metrics = everything()
    port = metrics.start_server(port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"modelium_requests_total{" in answer.read()
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: .*in use.*metrics.port"):
            ModeliumMetrics().start_server(port=port)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.2:{port}/metrics")
    finally:
        metrics.stop_server()
    assert metrics.start_server(port=port) == port
    metrics.stop_server()


def test_two_of_them_do_not_meet() -> None:
    first, second = everything(), ModeliumMetrics()
    assert value(first, "modelium_journal_failures_total") == 1
    assert value(second, "modelium_journal_failures_total") == 0
