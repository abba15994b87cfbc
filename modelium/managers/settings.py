"""Settings of one model, under its runtime's own names: which there are, and what each holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelium.errors import did_you_mean

NAMES = {"vllm": "vLLM", "triton": "Triton", "ray": "Ray"}
KNOWN: Mapping[str, Mapping[str, type]] = {
    "triton": {
        "instances": int,
        "max_batch_size": int,
        "max_queue_delay_microseconds": int,
        "input": list,
        "output": list,
        "parameters": dict,
        "task": str,  # of transformers, as is dtype
        "dtype": str,
        "env": dict,
    },
    "ray": {
        "class": str,  # "module:Class" in the model's folder; "" for the only one in model.py
        "args": dict,  # keyword arguments of that class
        "dtype": str,  # of a language model's weights, as transformers names them
        "trust_remote_code": bool,  # run the code that a language model brings
        "max_model_len": int,  # tokens of context, if fewer than the model's own
        "threads": int,  # answers made at the same time
        "max_ongoing_requests": int,  # requests that a replica takes before others wait in Ray
        "env": dict,  # environment variables of the replica
    },
}
"""Of runtimes that have few. vLLM itself refuses flags that it does not have."""
SEVERAL = frozenset({
    "allowed_media_domains", "api_key", "collect_detailed_traces", "cpu_offload_params",
    "cudagraph_capture_sizes", "ignore_patterns", "kv_cache_dtype_skip_layers", "logits_processors",
    "lora_modules", "lora_target_modules", "numa_bind_cpus", "numa_bind_nodes", "offload_params",
    "served_model_name", "sleep_preserve_parameter_names",
})  # fmt: skip
"""Flags that take several values: those with nargs in the parser of `vllm serve`, 0.32."""
_EXPECTED = {
    int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "a mapping",
}  # fmt: skip


def problem(runtime: str, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first wrong setting, and what is wrong with it in words that begin a sentence."""
    for name, value in settings.items():
        if why := _wrong(runtime, name, value):
            return name, why
    return None


def _wrong(runtime: str, name: str, value: Any) -> str:
    if runtime == "vllm":
        return _wrong_flag(name, value)
    known = KNOWN.get(runtime)
    if known is None:
        return ""  # the emulation reads its own
    if name not in known:
        hint = did_you_mean(name, known) or f" Known are {', '.join(known)}."
        return f"{NAMES[runtime]} has no setting {name!r}.{hint}"
    kind = known[name]
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return "" if fits else f"{name} is {value!r:.60}, expected {_EXPECTED[kind]}"


def _wrong_flag(name: str, value: Any) -> str:
    if name in ("flags", "env") or not isinstance(value, list):
        return ""
    flag = f"--{name.replace('_', '-')}"
    if name.replace("-", "_") not in SEVERAL:
        hint = did_you_mean(name, SEVERAL) or " Whatever vLLM takes may stand in `flags`."
        return f"{flag} of vLLM takes one value, not the list {value!r:.60}.{hint}"
    if not value or any(isinstance(one, list | dict) or one is None for one in value):
        return f"{flag} is {value!r:.60}, expected a list of one or more texts or numbers"
    return ""
