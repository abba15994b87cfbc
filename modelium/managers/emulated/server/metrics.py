"""What an emulated engine says on /metrics, under vLLM's and Triton's names."""

from __future__ import annotations

from modelium.managers.emulated.server.generate import Batcher
from modelium.managers.emulated.server.infer import Inferrer

SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
KIND = "text/plain; version=0.0.4; charset=utf-8"


def exposition(model: str, engine: Batcher | Inferrer, sleep_level: int) -> bytes:
    """The text that Prometheus reads."""
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    if isinstance(engine, Batcher):
        used = 1 - engine.free_blocks / engine.blocks
        labels = f'engine="0",model_name="{escaped}"'
        asleep = {state: level == sleep_level for level, state in enumerate(SLEEP_STATES)}
        lines = [
            *_one("vllm:num_requests_running", "gauge", labels, len(engine.running)),
            *_one("vllm:num_requests_waiting", "gauge", labels, len(engine.waiting)),
            *_one("vllm:kv_cache_usage_perc", "gauge", labels, used),
            *_one("vllm:prompt_tokens_total", "counter", labels, engine.prompt_tokens),
            *_one("vllm:generation_tokens_total", "counter", labels, engine.output_tokens),
            *_one("vllm:num_preemptions_total", "counter", labels, engine.preemptions),
            *_one("vllm:request_success_total", "counter", f'{labels},finished_reason="length"',
                  engine.finished),
            "# TYPE vllm:engine_sleep_state gauge",
            *(f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {now:d}'
              for state, now in asleep.items()),
        ]  # fmt: skip
    else:
        labels = f'model="{escaped}",version="1"'
        pending = len(engine.waiting) + len(engine.running)
        lines = [
            *_one("nv_inference_request_success", "counter", labels, engine.finished),
            *_one("nv_inference_count", "counter", labels, engine.items),
            *_one("nv_inference_exec_count", "counter", labels, engine.batches),
            *_one("nv_inference_pending_request_count", "gauge", labels, pending),
        ]
    return "\n".join([*lines, ""]).encode()


def _one(name: str, kind: str, labels: str, value: float) -> tuple[str, str]:
    return f"# TYPE {name} {kind}", f"{name}{{{labels}}} {value}"
