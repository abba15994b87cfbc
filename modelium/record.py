"""What a run leaves behind: one folder of tables, the same from both worlds.

requests.parquet   a row a request, in order of arrival
decisions.parquet  a row an action, in order of time
timeline.parquet   who held what memory of which GPU when, and how busy each GPU was
summary.json       the figures of `modelium.summary`
"""

from __future__ import annotations

OUTCOMES = ("completed", "rejected", "failed", "unfinished")
"""Every request ends as exactly one of these."""

COLD = ("", "host", "disk", "sleep-1", "sleep-2")
"""The tier whose load or wake a request waited for; "" if it found a ready instance."""

REQUEST_COLUMNS = {
    "arrival_s": "float64",
    "model": "dictionary",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "outcome": "dictionary of OUTCOMES",
    "instance": "dictionary; null if it never reached one",
    "first_token_s": "float64, NaN if none; for models that answer in one piece: the answer",
    "finish_s": "float64, NaN unless completed",
    "cold": "dictionary of COLD",
    "preemptions": "int32",
    "cached_tokens": "int32: prompt tokens found in the prefix cache",
    "retries": "int32",
    "slo_met": "bool: completed within all limits of its SLO",
    "slo_class": "dictionary (only if the trace has it)",
    "organization": "dictionary (only if the trace has it)",
}
DECISION_COLUMNS = {
    "at_s": "float64",
    "kind": "dictionary: load unload sleep wake move",
    "model": "dictionary",
    "instance": "string",
    "gpus": "string: names joined by a blank",
    "reason": "string",
    "end_s": "float64, NaN if it had not ended",
    "error": "string; empty if it succeeded",
    "tier": "dictionary of COLD",
    "stages": "string: JSON object, seconds by stage",
}
TIMELINE_COLUMNS = {
    "gpu": "dictionary",
    "start_s": "float64",
    "end_s": "float64",
    "kind": "dictionary: loading weights kv overhead asleep leaving (value: bytes held), "
    "busy (value: share of the bin), kv_used (value: mean bytes in the bin)",
    "model": "dictionary; empty for busy",
    "instance": "dictionary; empty for busy and kv_used",
    "value": "float64",
}
