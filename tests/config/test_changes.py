"""What differs between two configurations, and what a running server cannot take up."""

from __future__ import annotations

from modelium.config import Config
from modelium.config.changes import RESTART, differences, keeping, needs_restart

OLD = Config.of(
    {
        "cluster": {"gpus": "2xl4"},
        "models": {"a": "qwen2.5-0.5b", "b": "qwen2.5-0.5b"},
        "gateway": {"organizations": {"acme": {"requests_per_minute": 1}}},
    }
)
NEW = Config.of(
    {
        "cluster": {"gpus": "4xl4"},
        "models": {"a": {"catalogue": "qwen2.5-0.5b", "kv": "1GiB"}, "c": "qwen2.5-0.5b"},
        "gateway": {
            "port": 9000,
            "max_wait": "5s",
            "organizations": {"acme": {"requests_per_minute": 2}},
        },
        "vllm": {"env": {"A": "1"}, "flags": ["--x"]},
        "live": {"folder": "elsewhere", "keep": "1d"},
        "policy": "gdsf",
    }
)


def test_differences_are_named_by_their_keys() -> None:
    assert set(differences(OLD, NEW)) == {
        "cluster.gpus", "models.a.kv", "models.b", "models.c", "gateway.port", "gateway.max_wait",
        "gateway.organizations.acme.requests_per_minute", "vllm.env", "vllm.flags", "live.folder",
        "live.keep", "policy",
    }  # fmt: skip
    assert differences(NEW, NEW) == []


def test_what_only_a_restart_takes_up_stays_as_it_was() -> None:
    assert needs_restart(OLD, NEW) == ["cluster.gpus", "vllm.env", "gateway.port", "live.folder"]
    kept = keeping(OLD, NEW)
    assert needs_restart(OLD, kept) == []
    assert (kept.gateway.port, kept.live.folder, kept.vllm.env) == (8080, ".modelium", {})
    assert (kept.gateway.max_wait, kept.live.keep, kept.vllm.flags) == (5.0, 86400.0, ["--x"])
    assert kept.models == NEW.models


def test_every_key_that_needs_a_restart_is_one_of_the_file() -> None:
    for key in RESTART:
        value = OLD
        for name in key.split("."):
            value = getattr(value, name)
